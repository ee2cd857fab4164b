"""One cut: trace, capture, propose, prune, measure, record. The only place that knows this order.

A cut is made somewhere: in a running fit, with its processes, optimizers and averaged copies, or on a
copy of a network; :class:`acsp_lightning.site.Site` is what the pipeline needs of such a place.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from acsp_lightning.capture.batches import count_classes, rare_classes, read_labelled, survey
from acsp_lightning.capture.holdout import captured_labels, held_back
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.samples import (
    SampleCollector,
    Samples,
    by_batch,
    collect_samples,
    join_samples,
)
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.measure.accuracy import ClassCounts, check_outputs, count_by_class
from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.measure.latency import LatencyComparison, compare_latency
from acsp_lightning.progress import tracked, warn_on_error
from acsp_lightning.report import PruningStep, reference_accuracy, time_taken
from acsp_lightning.report.concerns import concerns
from acsp_lightning.selection.damage import OutputSize, output_sizes
from acsp_lightning.selection.examination import examine, groups_due
from acsp_lightning.selection.holdback import enough_to_measure, share_to_hold_back
from acsp_lightning.selection.proposal import Proposal, propose
from acsp_lightning.selection.sensitivity import with_sensitivity
from acsp_lightning.selection.time_target import time_target
from acsp_lightning.selection.trials import HeldBack, Timing, Trials
from acsp_lightning.selection.weighing import announce_wait, weigh_groups
from acsp_lightning.settings import PruningSettings
from acsp_lightning.site import Site
from acsp_lightning.structure.batchnorm import match_batchnorm, measure_batchnorm
from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.example import Example, as_arguments
from acsp_lightning.structure.pruning import Recovery, prune
from acsp_lightning.structure.randomness import random_state_restored
from acsp_lightning.structure.refit import Refit, prepare_refit
from acsp_lightning.structure.surgery import SlicedParameter

LATENCY_FAILED = "The latency of the network could not be measured"
LATENCY_ADVICE = "Pruning goes on without it; leave latency_batch_sizes empty to measure none."
NO_BATCH = "The validation loader is empty; pruning captures validation batches."


def capture_network(
    model: nn.Module,
    batches: Iterable[Any],
    settings: PruningSettings,
    *,
    visited: Collection[str] = (),
    initial: Complexity | None = None,
    measured: bool = False,
) -> tuple[Example, Captured]:
    """Capture a network that no Trainer runs.

    Args:
        model: the network, on the device of the batches.
        batches: labelled batches; read twice.
        settings: what is to be cut.
        visited: as in :func:`groups_due`.
        initial: as in :func:`examine`.
        measured: hold samples back to measure cuts on, even if the settings decide without.

    Returns:
        The example that the network was looked at with, and what was captured; its epoch is None.

    Raises:
        ValueError: as :func:`survey` and :func:`examine`; or if there is no batch, fewer than two
            classes, or activations are not finite.
    """
    example, labels = survey(model, batches, settings.read_batch)
    if example is None:
        raise ValueError("There is no batch to capture; pass at least one.")
    count_classes(labels)
    tracing = examine(model, example, settings, initial).tracing
    groups = groups_due(tracing.groups, settings, visited)
    scored = check_outputs(model, example.traced, labels, settings.read_outputs)
    share, unmeasured = share_to_hold_back(len(labels), scored, settings, anyway=measured)
    labels = captured_labels([labels], share)
    num_classes = count_classes(labels)
    for concern in (unmeasured, rare_classes(labels)):
        if concern is not None:
            warnings.warn(concern, stacklevel=2)
    capture = ActivationCapture(model, groups, settings.selection.grid, num_classes, share)
    capture.attach()
    try:
        with evaluation_state(model):
            for batch in tracked(batches, "Capturing activations"):
                inputs, found = read_labelled(settings.read_batch, batch)
                capture.expect(found)
                with default_dtype(model):
                    model(*as_arguments(model, inputs))
    finally:
        capture.detach()
    activations = capture.finish()
    whole, sums = tracing.whole, tracing.sums
    return example, Captured(None, groups, activations, None, None, whole, share, sums)


def decide_cut(
    site: Site,
    captured: Captured,
    settings: PruningSettings,
    example: Example,
    initial: Complexity | None = None,
    *,
    earlier: Sequence[PruningStep] = (),
    shares: Sequence[float] = (),
) -> tuple[Proposal, Recovery]:
    """Decide what is cut, and prepare what layers recover with; changes nothing.

    Args:
        site: where the cut will be made.
        captured: what was captured of its network.
        settings: what is cut, and how.
        example: arguments of forward.
        initial: the complexity that ``selection.flops`` is a share of; None: that of the network.
        earlier: the cuts of the fit so far.
        shares: as in :func:`acsp_lightning.selection.proposal.propose`.

    Raises:
        ValueError: if classes are missing, or the volume asked for cannot be had.
    """
    network, inputs = site.network, example.counted
    before = measure_complexity(network, inputs)
    refits, folds = settings.recovery == "least_squares", settings.recovery != "none"
    measures = captured.held_back > 0 and captured.decisions is None
    looks = refits or settings.selection.is_global
    outputs, samples = _looked_at(site, captured, settings, looks, measures)
    recovery = Recovery(
        example=example.traced,
        input_moments=captured.activations.input_moments if folds else None,
        refit=outputs if refits else None,
        refits=refits,
    )

    def prepare() -> Mapping[str, OutputSize] | None:
        groups, activations, config = captured.groups, captured.activations, settings.selection
        announce_wait(groups, activations, config, site.processes, site.inform)
        return None if outputs is None else output_sizes(outputs.targets)

    weighed = weigh_groups(
        network,
        captured.groups,
        captured.activations,
        settings.selection,
        sizes=site.on_rank_zero(prepare),
        round_to=settings.round_to,
        decisions=captured.decisions,
        spread=site.spread,
    )

    def decide() -> Proposal:
        trials = None
        known = with_sensitivity(network, captured, weighed, outputs, settings.read_outputs)
        held, concern = enough_to_measure(samples, settings) if measures else (None, None)
        if concern is not None:
            site.warn(concern)
        if held is not None:
            timing, back = Timing(inputs, settings.latency_batch_sizes), HeldBack(*held)
            trials = Trials(
                network, captured.groups, before, recovery, back, settings.read_outputs, timing
            )
        kept, taken = site.times_file, time_taken(earlier)
        with time_target(
            network, captured.groups, inputs, settings, kept=kept, taken=taken, inform=site.inform
        ) as deadline:
            return propose(
                captured,
                known,
                settings,
                before,
                initial=initial,
                trials=trials,
                deadline=deadline,
                reference=reference_accuracy(earlier),
                shares=shares,
                inform=site.inform,
            )

    return site.on_rank_zero(decide), recovery


def _looked_at(
    site: Site, captured: Captured, settings: PruningSettings, refits: bool, measures: bool
) -> tuple[Refit | None, Samples | None]:
    """Captured samples with the outputs of all layers, and samples held back, where it is decided.

    Every process reads samples for the outputs from its own share: one share may lack classes.
    """
    share, most = captured.held_back, settings.recovery_samples
    fitted = SampleCollector(
        most, lambda start, count: ~held_back(start, count, share), collectors=site.processes
    )
    measured = SampleCollector(
        settings.measured_samples, lambda start, count: held_back(start, count, share)
    )
    collectors = [fitted] * refits + [measured] * (measures and site.is_rank_zero)

    def read() -> None:
        collect_samples(site.network, site.batches(), settings.read_batch, *collectors)

    site.on_all_ranks(read)
    samples = fitted.samples
    if site.processes > 1:
        device = next(site.network.parameters()).device
        samples = join_samples(site.to_rank_zero(by_batch(samples)), most, device)

    def prepare() -> Refit | None:
        if samples is None:
            return None
        layers = dict.fromkeys(side.layer for group in captured.groups for side in group.consumers)
        norms = dict.fromkeys(norm for group in captured.groups for norm in group.norms)
        later = site.correctable_layers if settings.recovery == "least_squares" else ()
        return prepare_refit(site.network, layers, samples[0], norms=norms, later=later)

    found: list[Refit | None] = []
    site.on_all_ranks(lambda: found.append(prepare()))
    return found[0], measured.samples


def prune_network(
    model: nn.Module, proposal: Proposal, recovery: Recovery, *, tried: bool = True
) -> tuple[SlicedParameter, ...]:
    """Cut a network in place, let it recover, and try its forward.

    After a refit BatchNorm layers get the statistics of what they are given, and compute the same.

    Args:
        model: the network, or an averaged copy of it.
        proposal: what stays.
        recovery: what it recovers with; samples are those of ``model``.
        tried: run forward before and after.

    Returns:
        One entry for every parameter that became smaller.

    Raises:
        ValueError: if the plan does not fit; RuntimeError: if forward fails after the cut. The network
            is as it was then.
    """
    sliced = prune(
        model,
        proposal.plan,
        recovery.example if tried else None,
        groups=proposal.groups,
        input_moments=recovery.input_moments,
        refit=recovery.refit,
    )
    if recovery.refit is not None and proposal.plan:
        match_batchnorm(model, measure_batchnorm(model, recovery.refit.inputs))
    return sliced


def make_cut(
    site: Site,
    captured: Captured,
    settings: PruningSettings,
    example: Example,
    initial: Complexity | None = None,
    *,
    earlier: Sequence[PruningStep] = (),
    shares: Sequence[float] = (),
) -> PruningStep:
    """Decide, cut and measure; returns the record.

    Arguments as in :func:`decide_cut`.

    Raises:
        ValueError: as :func:`decide_cut`; RuntimeError: if the network does not work after the cut.
            The network is as it was then.
    """
    proposal, recovery = decide_cut(
        site, captured, settings, example, initial, earlier=earlier, shares=shares
    )
    classes_before = count_classified(site, site.network, settings)
    uncut = _kept_for_timing(site, settings)
    smaller = site.prune(proposal, recovery)
    classes_after = count_classified(site, smaller, settings)
    step = PruningStep(
        epoch=captured.epoch,
        plan=proposal.plan,
        selections=proposal.selections,
        layers=proposal.plan.filters(proposal.groups),
        before=proposal.before,
        after=measure_complexity(smaller, example.counted),
        accuracy_before=None if classes_before is None else classes_before.accuracy,
        accuracy_after=None if classes_after is None else classes_after.accuracy,
        samples=captured.activations.samples,
        comparison=proposal.comparison,
        network=proposal.network,
        latency=_timed(site, uncut, smaller, example, settings),
        maps=proposal.maps,
        averaged=site.is_averaged,
        classes_before=classes_before,
        classes_after=classes_after,
        class_names=tuple(site.class_names()),
        left_whole=captured.left_whole,
        sums=captured.sums,
        norms=proposal.plan.norms(proposal.groups),
        trade_off=proposal.trade_off,
        times=proposal.times,
    )
    for concern in concerns(step):
        site.warn(concern)
    return step


def count_classified(site: Site, network: nn.Module, settings: PruningSettings) -> ClassCounts | None:
    """Samples captured by all processes, by class; None without samples or class scores."""

    def share() -> ClassCounts | None:
        with random_state_restored():
            return count_by_class(network, site.batches(), settings.read_batch, settings.read_outputs)

    known = [counts for counts in site.on_all_ranks(share) if counts is not None and len(counts.seen)]
    return sum(known[1:], start=known[0]) if known else None


def _kept_for_timing(site: Site, settings: PruningSettings) -> nn.Module | None:
    if not settings.latency_batch_sizes or not site.is_rank_zero:
        return None
    return warn_on_error(site.uncut, LATENCY_FAILED, LATENCY_ADVICE)


def _timed(
    site: Site,
    uncut: nn.Module | None,
    smaller: nn.Module,
    example: Example,
    settings: PruningSettings,
) -> tuple[LatencyComparison, ...]:
    """Both networks timed in turns on the process that decides, while the others wait."""
    if not settings.latency_batch_sizes:
        return ()

    def work() -> tuple[LatencyComparison, ...]:
        if uncut is None:
            return ()
        with random_state_restored():
            return compare_latency(uncut, smaller, example.counted, settings.latency_batch_sizes)

    return site.on_rank_zero(lambda: warn_on_error(work, LATENCY_FAILED, LATENCY_ADVICE) or ())
