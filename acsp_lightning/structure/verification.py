"""Whether a cut does what it says: the same as zeroing the channels where consumers read them.

The tracer takes layers as a whole, views for shuffles and numbers for widths, as they mostly are. Before
a group is offered, it is therefore cut for a :mod:`~acsp_lightning.structure.trial`: all groups at once,
which is enough where nothing is wrong.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from acsp_lightning.structure.evaluation import evaluation_state, train_mode
from acsp_lightning.structure.forward import UnsupportedStructureError, call_counts, counted, run_forward
from acsp_lightning.structure.groups import ChannelGroup, Norms, Tracing, by_reason
from acsp_lightning.structure.inputs import of_batch_size, varied
from acsp_lightning.structure.randomness import advance_random_state
from acsp_lightning.structure.replay import part_of_forward, record_forward
from acsp_lightning.structure.sides import parsed
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.trial import Difference, trial_difference

# Of a forward that skips layers at random, in which each of them is likely to be called.
TRAINING_PASSES = 16


def prunable_groups(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool | None = None,
    norms: Norms = "exact",
) -> Tracing:
    """Trace ``model`` and keep what can be cut: :func:`trace_groups`, then :func:`verify_groups`.

    With ``residual=None`` the residual sums are offered too if nothing else can be cut.

    Raises:
        UnsupportedStructureError: if nothing is left, with the reasons, or as :func:`trace_groups`.
        ValueError: if a pattern matches no layer.
    """
    look = partial(trace_groups, model, inputs, include=include, exclude=exclude, norms=norms)
    tracing = look(residual=residual)
    tracing = verify_groups(model, inputs, tracing)
    if not tracing.groups and residual is None and tracing.summed:
        tracing = verify_groups(model, inputs, replace(look(residual=True), chosen=True))
    if not tracing.groups:
        reasons = by_reason(tracing.left_whole)
        raise UnsupportedStructureError(
            f"No layer of {type(model).__name__} can be pruned with include={list(include)}, "
            f"exclude={list(exclude)}, residual={residual}, norms={norms!r}. The output "
            f"layer is never cut. {reasons or 'No other layer was asked for'}."
        )
    return tracing


def verify_groups(model: nn.Module, inputs: tuple[Any, ...], tracing: Tracing) -> Tracing:
    """Keep the groups whose cut equals zeroed channels; move the others to ``left_whole``.

    All groups are tried at once, at the cost of five forward passes, three of them of a smaller network.
    Only if that fails, those that are suspected are tried alone, on the part of a forward pass that
    concerns them, and the others at once again. Before, every attribute that counts channels is tried in
    the same way: one that a cut need not change stays.

    Args:
        model: any module; left as it was.
        inputs: example arguments of ``forward``.
        tracing: what :func:`acsp_lightning.structure.tracing.trace_groups` found.
    """
    inputs = varied(inputs)
    with evaluation_state(model):
        groups = _without_idle_sizes(model, inputs, tracing.groups)
        reasons = _reasons(model, inputs, groups)
    return replace(
        tracing,
        groups=tuple(group for group in groups if group.name not in reasons),
        left_whole={**tracing.left_whole, **reasons},
    )


def _without_idle_sizes(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]
) -> Sequence[ChannelGroup]:
    """The groups less the attributes that may stay as they are.

    Forward reads them, but for something else: they equal a count of channels by chance. What it reads
    them for is written in a class, so that an attribute is tried in all modules of a class at once.
    """
    sample = _first_sample(inputs)
    read_by = {
        (side.layer, side.side): (type(model.get_submodule(side.layer)), parsed(side.side)[1])
        for group in groups
        for side in group.passthrough
        if parsed(side.side)[0] == "size"
    }
    readers = dict.fromkeys(read_by.values())
    for idle in dict.fromkeys([frozenset(readers), *(frozenset([reader]) for reader in readers)]):
        less = [
            replace(
                group,
                passthrough=tuple(
                    side
                    for side in group.passthrough
                    if read_by.get((side.layer, side.side)) not in idle
                ),
            )
            for group in groups
        ]
        tried = [group for group in less if group not in groups]
        if tried and None is trial_difference(
            model,
            tried,
            lambda: run_forward(model, sample),
            lambda: _run_in_training(model, inputs),
        ):
            groups = less
    return groups


def _reasons(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """Why groups must stay whole, by name; all others can be cut at once."""
    if not groups or _right_at_once(model, inputs, groups):
        return {}
    trains = _trains(model, inputs)
    reasons = _evaluated_only(model, inputs, groups) if trains else {}

    def judge(tried: Sequence[ChannelGroup]) -> Difference | None:
        training = (lambda: _run_in_training(model, inputs)) if trains else None
        return trial_difference(model, tried, lambda: run_forward(model, inputs), training)

    def rest() -> list[ChannelGroup]:
        return [group for group in groups if group.name not in reasons]

    while (found := judge(rest())) is not None:
        culprits = _alone(model, inputs, rest(), found) or _bisected(rest(), judge)
        if not culprits:
            break
        reasons |= culprits
    return {group.name: reasons[group.name] for group in groups if group.name in reasons}


def _right_at_once(model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]) -> bool:
    """Whether all groups can be cut at once, and training calls all layers that evaluation calls.

    One sample is enough for values; it halves the cost. Where forward does not take it, the answer is
    no, and the search that follows takes all.
    """
    trained: Counter[str] = Counter()

    def training() -> None:
        with counted(model) as calls:
            _run_in_training(model, inputs)
        trained.update(calls)

    sample = _first_sample(inputs)
    with counted(model) as called:
        found = trial_difference(model, groups, lambda: run_forward(model, sample), training)
    return found is None and called.keys() == trained.keys()


def _first_sample(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        return of_batch_size(inputs, 1)
    except ValueError:  # there are no samples to tell apart
        return inputs


def _alone(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], found: Difference
) -> dict[str, str]:
    """Why groups that a difference points at cannot be cut even alone, as far as their layers tell."""
    suspects = [g for g in groups if any(side.layer in found.layers for side in g.sides)]
    if not suspects:
        return {}
    recording = record_forward(model, inputs)
    reasons = {}
    for group in suspects:
        layers = {side.layer for side in group.producers + group.consumers}
        if layers <= recording.begins.keys():
            # Owners of parameters may be modules that forward does not call.
            layers |= {side.layer for side in group.passthrough} & recording.begins.keys()
            part = part_of_forward(model, inputs, recording, layers)
            difference = trial_difference(model, [group], part)
            if difference is not None:
                reasons[group.name] = difference.reason
    return reasons


def _evaluated_only(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """Why groups are not those that train: forward calls one of their layers in eval mode alone."""
    idle = set(call_counts(model, inputs))
    with train_mode(model):
        for _ in range(TRAINING_PASSES):
            idle -= set(call_counts(model, inputs))
            if not idle:
                break
            advance_random_state(model)  # layers that are skipped at random (LayerDrop) get another draw
    found = {}
    for group in groups:
        layer = next((side.layer for side in group.sides if side.layer in idle), None)
        if layer is not None:
            found[group.name] = (
                f"forward calls {layer!r} in evaluation and never in training, so what would "
                "be cut is not the one that trains (an averaged copy?)"
            )
    return found


def _bisected(
    groups: Sequence[ChannelGroup], judge: Callable[[Sequence[ChannelGroup]], Difference | None]
) -> dict[str, str]:
    """Why some groups must stay whole; halves the set until the culprits stand alone."""
    difference = judge(groups)
    if difference is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: difference.reason}
    half = len(groups) // 2
    culprits = _bisected(groups[:half], judge) | _bisected(groups[half:], judge)
    return culprits or _first_come(groups, judge)


def _first_come(
    groups: Sequence[ChannelGroup], judge: Callable[[Sequence[ChannelGroup]], Difference | None]
) -> dict[str, str]:
    """Why groups must stay whole that can be cut, but not with the ones before them."""
    accepted: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for group in groups:
        difference = judge([*accepted, group])
        if difference is None:
            accepted.append(group)
        else:
            reasons[group.name] = f"together with the groups before it, {difference.reason}"
    return reasons


def unseen_layers(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Layers with parameters of their own that ``forward`` calls neither in eval nor in train mode.

    No tracing sees them: whoever calls them otherwise (a head that only ``training_step`` uses) must
    not feed them channels that are cut.
    """
    with evaluation_state(model):
        called = set(call_counts(model, inputs))
        try:
            with train_mode(model):
                called |= set(call_counts(model, inputs))
        except UnsupportedStructureError:
            pass  # train mode wants other inputs than the example; nothing can be told of it
    owners = (name for name, m in model.named_modules() if next(m.parameters(False), None) is not None)
    return tuple(name for name in owners if name not in called)


def _run_in_training(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One forward pass in train mode; with gradients, as in training."""
    with train_mode(model), torch.enable_grad():
        run_forward(model, inputs)


def _trains(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a forward pass in train mode takes the example."""
    try:
        _run_in_training(model, inputs)
    except Exception:
        return False
    return True
