"""What is known of a fit before its first epoch: an example, the classes, and who holds the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from acsp_lightning.capture.batches import count_classes, rare_classes, survey
from acsp_lightning.capture.holdout import SHUFFLED, captured_labels, is_shuffled
from acsp_lightning.measure.accuracy import check_outputs
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.pipeline import NO_BATCH
from acsp_lightning.selection.examination import examine, groups_due, trace
from acsp_lightning.selection.holdback import share_to_hold_back
from acsp_lightning.selection.time_target import time_target
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.example import Example
from acsp_lightning.structure.fingerprint import Fingerprint, fingerprint
from acsp_lightning.structure.groups import ChannelGroup, Tracing, by_reason
from acsp_lightning.structure.verification import unseen_layers
from acsp_lightning.trainer.averages import check_averages
from acsp_lightning.trainer.candidates import warn_of_lookalikes, without_copies
from acsp_lightning.trainer.copies import Copies, warn_of_doubtful
from acsp_lightning.trainer.loaders import validation_batches
from acsp_lightning.trainer.ranks import check_ranks_agree, from_rank, on_rank_zero, run_on_all_ranks

# What Lightning notes in a module while it trains.
BOOKKEEPING = vars(pl.LightningModule()).keys() - vars(nn.Module()).keys()


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a network.

    Attributes:
        network: what it was found in.
        asked: the settings that decide about it.
        tracing: the groups of channels.
    """

    network: Fingerprint
    asked: tuple[object, ...]
    tracing: Tracing

    @classmethod
    def of(cls, module: nn.Module, settings: PruningSettings, tracing: Tracing) -> "Look":
        """A look that has just been taken."""
        return cls(_fingerprint(module), _asked(settings), tracing)

    def holds(self, module: nn.Module, settings: PruningSettings) -> bool:
        """Whether another look would find the same."""
        return self.asked == _asked(settings) and self.network == _fingerprint(module)


def _fingerprint(module: nn.Module) -> Fingerprint:
    return fingerprint(
        module, passed_over=(Metric, MetricCollection), attributes_passed_over=BOOKKEEPING
    )


def _asked(settings: PruningSettings) -> tuple[object, ...]:
    return tuple(settings.include), tuple(settings.exclude), settings.residual, settings.norms


@dataclass(frozen=True, slots=True, eq=False)
class FitSurvey:
    """What a fit was found to be.

    Attributes:
        example: arguments of forward, the same on all ranks, on the device of the module.
        num_classes: C.
        complexity: of the network before the first epoch of this fit.
        held_back: share of the validation samples that is not captured, to measure cuts on.
        look: at the network, as late as possible.
    """

    example: Example
    num_classes: int
    complexity: Complexity
    held_back: float
    look: Look

    def renewed(self, module: pl.LightningModule, settings: PruningSettings) -> "FitSurvey":
        """The same, with another look at the network if it has changed since the last."""
        if self.look.holds(module, settings):
            return self
        tracing = trace(module, self.example, settings)
        return replace(self, look=Look.of(module, settings, tracing))

    def due(
        self, module: pl.LightningModule, settings: PruningSettings, visited: Sequence[str]
    ) -> tuple["FitSurvey", Mapping[str, ChannelGroup]]:
        """The same :meth:`renewed`, and the groups of channels that the next cut takes, by name.

        Args:
            module: the network.
            settings: what is to be cut.
            visited: names of the groups that earlier cuts have taken.
        """
        renewed = self

        def work() -> dict[str, ChannelGroup]:
            nonlocal renewed
            renewed = self.renewed(module, settings)
            groups = groups_due(renewed.look.tracing.groups, settings, visited)
            return {group.name: group for group in groups}

        groups = check_ranks_agree(work)
        return renewed, groups


def survey_fit(
    trainer: pl.Trainer,
    settings: PruningSettings,
    copies: Copies,
    initial: Complexity | None,
    *,
    has_cut: bool = False,
) -> FitSurvey:
    """Read the labels to be captured, trace the network and measure it; warn of what stays whole.

    Args:
        trainer: of a fit, with the module on its device.
        settings: what is to be cut.
        copies: of the network; they begin here.
        initial: the complexity that ``selection.flops`` is a share of; None: that of the network now.
        has_cut: whether a cut was made earlier in the fit, before which the target in time was checked.

    Raises:
        ValueError: if there is no batch, labels are not classes, nothing can be cut, or a volume cannot
            be reached.
    """
    module = trainer.lightning_module
    run_on_all_ranks(lambda: check_averages(trainer))
    own: list[Example | None] = []

    def read() -> tuple[bool, Tensor]:
        found, labels = _share(trainer, settings)
        own.append(found)
        return found is not None, labels

    shares = run_on_all_ranks(read)
    by_rank = [found for _, found in shares]
    labels = torch.cat(by_rank)
    count_classes(labels)
    having = [rank for rank, (has_one, _) in enumerate(shares) if has_one]
    if not having:
        raise ValueError(NO_BATCH)
    # One example for all ranks: a network traced with another one may look different.
    first = from_rank(own[0], having[0])
    assert first is not None, "it is that of a rank that has one"
    example = first.to(module.device)

    def look() -> FitSurvey:
        found = examine(module, example, settings, initial)
        idle = unseen_layers(module, example.traced)
        copies.begin(trainer, settings, idle)
        doubtful = copies.doubtful()
        unseen = without_copies(module, idle, [*copies.followed(), *doubtful])
        warn_of_tracing(found.tracing, unseen)
        warn_of_doubtful(doubtful)
        warn_of_lookalikes(trainer, copies.found())
        scored = check_outputs(module, example.traced, labels, settings.read_outputs)
        # Measured is on the first process.
        share, unmeasured = share_to_hold_back(len(by_rank[0]), scored, settings)
        captured = captured_labels(by_rank, share)
        shuffled = SHUFFLED if share and is_shuffled(trainer.val_dataloaders) else None
        for concern in (unmeasured, shuffled, rare_classes(captured)):
            if concern is not None:
                rank_zero_warn(concern)
        taken = Look.of(module, settings, found.tracing)
        return FitSurvey(example, count_classes(captured), found.complexity, share, taken)

    result: list[FitSurvey] = []
    run_on_all_ranks(lambda: result.append(look()))
    (found,) = result
    if not has_cut:  # a fit that goes on may do so on another machine
        on_rank_zero(lambda: _check_time(module, found, settings))
    return found


def _check_time(module: nn.Module, found: FitSurvey, settings: PruningSettings) -> None:
    with time_target(module, found.look.tracing.groups, found.example.counted, settings) as target:
        if target is not None:
            target.check()


def _share(trainer: pl.Trainer, settings: PruningSettings) -> tuple[Example | None, Tensor]:
    """An example of the first batch to be captured, if this process has any, and all labels."""
    # Lightning skips a loop of known length 0, and with it the exchange with other processes.
    if trainer.num_val_batches and sum(trainer.num_val_batches) == 0:
        raise ValueError(NO_BATCH)
    batches = validation_batches(trainer, settings.max_batches)
    return survey(trainer.lightning_module, batches, settings.read_batch)


def warn_of_tracing(tracing: Tracing, unseen: Sequence[str]) -> None:
    """Name the layers that are left whole, and those that forward never calls; count those in sums.

    Args:
        tracing: of the network.
        unseen: names of layers that forward never calls.
    """
    if tracing.left_whole:
        rank_zero_warn(f"Some layers are left whole. {by_reason(tracing.left_whole)}.")
    if tracing.sums is not None:
        rank_zero_info(tracing.sums)
    if unseen:
        rank_zero_warn(
            f"forward calls {', '.join(map(repr, unseen))} neither in eval nor in train mode. If "
            "training_step hands them channels of the network, exclude the layers that make these."
        )
