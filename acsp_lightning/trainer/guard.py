"""The accuracy guard at work: the last cut of a fit is watched, and rolled back if it costs too much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from acsp_lightning.capture.statistics import Captured
from acsp_lightning.functional import WidthReason
from acsp_lightning.report import PruningStep
from acsp_lightning.report.step import Outcome, Verdict
from acsp_lightning.selection.allocation import as_decisions, halved_widths
from acsp_lightning.settings import Guard
from acsp_lightning.trainer.checks import GUARDED, check_alone
from acsp_lightning.trainer.cut import FitSite
from acsp_lightning.trainer.ranks import on_rank_zero, run_on_all_ranks
from acsp_lightning.trainer.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Trial:
    """A cut that has yet to prove itself.

    Attributes:
        monitor: name of the metric that judges it.
        mode: "max" if more is better, "min" if less is.
        captured: what it rests on, to cut once more by it.
        snapshot: the network before it.
        before: the metric before it.
        due: epoch after whose validation it is judged.
        after: the metric in the latest validation from that epoch on.
    """

    monitor: str
    mode: str
    captured: Captured
    snapshot: Snapshot
    before: float
    due: int
    after: float | None = None


class GuardMonitor:
    """What the guard knows of one fit; without a guard it does nothing.

    Args:
        guard: when a cut counts as recovered; None: every cut stays.

    Attributes:
        trial: the cut that has yet to prove itself, if there is one.
    """

    def __init__(self, guard: Guard | None) -> None:
        self.trial: Trial | None = None
        self._guard = guard
        self._epochs: int | None = None  # of the fit, before SWA adds one
        self._stale: Tensor | None = None  # the monitor as it was before a validation
        self._validated = False  # in this fit

    @property
    def patience(self) -> int:
        """Epochs of tuning that a cut needs; 0 without a guard."""
        return 0 if self._guard is None else self._guard.patience

    def begin(self, callback: pl.Callback, trainer: pl.Trainer, epochs: Sequence[int]) -> None:
        """Check that the cuts after ``epochs`` can be judged, and rolled back without harm to others."""
        self._epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
        self._validated = False
        if self._guard is not None:
            check_judged(self._guard, epochs, self._epochs, trainer.check_val_every_n_epoch or 1)
            check_alone(callback, trainer, "guard", GUARDED)

    def forget(self) -> None:
        """Hold no weights of the user's."""
        self.trial = None

    def resume(self, trial: Trial | None) -> None:
        """Go on with a trial out of a checkpoint, if it is one of this guard's."""
        if trial is not None and (self._guard is None or not _waits(self._guard, trial)):
            rank_zero_warn(
                f"In the checkpoint a cut waits to be judged by {trial.monitor!r} ({trial.mode}), but "
                "this callback has another guard or none: the cut stays."
            )
            trial = None
        self.trial = trial

    def before_validation(self, trainer: pl.Trainer) -> None:
        """Take the monitor's value away, so that what is there afterwards is new."""
        if self._guard is not None:
            self._stale = trainer.callback_metrics.pop(self._guard.monitor, None)

    def after_sanity_check(self, trainer: pl.Trainer) -> None:
        """Check, before the first epoch, that the monitor is among the metrics that are logged.

        Raises:
            ValueError: if others are, and it is not.
        """
        guard, metrics = self._guard, trainer.callback_metrics
        if guard is not None:
            where = "the sanity check"
            run_on_all_ranks(lambda: check_logged(guard, metrics, where) if metrics else None)

    def after_validation(self, trainer: pl.Trainer, *, captured: bool) -> float | None:
        """The monitor as the first process has it; None if this validation has not logged it.

        Raises:
            ValueError: if it was not logged, or is not finite, in a validation that was ``captured``;
                or if it was not logged in the first of a fit.
        """
        guard, metrics = self._guard, trainer.callback_metrics
        if guard is None:
            return None
        first, self._validated = not self._validated, True
        if first and not captured:
            run_on_all_ranks(lambda: check_logged(guard, metrics, "the first validation"))
        if captured:
            return run_on_all_ranks(lambda: monitored_value(guard, metrics))[0]
        if guard.monitor not in metrics:
            if self._stale is not None:  # for whoever else looks at it
                metrics[guard.monitor] = self._stale
            return None
        value = run_on_all_ranks(lambda: float(metrics[guard.monitor]))[0]
        if self.trial is not None and trainer.current_epoch >= self.trial.due:
            self.trial = replace(self.trial, after=value)
        return value

    def open(self, site: FitSite, epoch: int, captured: Captured) -> None:
        """Keep all that it takes to roll back the cut that is about to be made in ``epoch``."""
        if self._guard is None or captured.metric is None:
            return
        self.trial = Trial(
            monitor=self._guard.monitor,
            mode=self._guard.mode,
            captured=captured,
            snapshot=site.snapshot(),
            before=captured.metric,
            due=epoch + self.patience - 1,
        )

    def judge(
        self,
        trainer: pl.Trainer,
        site: FitSite,
        step: PruningStep,
        next_epoch: int | None,
        round_to: int,
    ) -> tuple[PruningStep, Captured | None]:
        """Keep the cut on trial, or roll it back.

        Args:
            trainer: in the fit, between two epochs or at its end.
            site: the same fit.
            step: the record of the cut.
            next_epoch: the epoch in which it could be made again; None: there is none.
            round_to: widths are multiples of this.

        Returns:
            The record with its verdict, and by what to cut again; None if not.
        """
        trial, guard = self.trial, self._guard
        assert trial is not None
        assert guard is not None
        self.trial = None
        # A cut of layers that have failed before stays only if it is proven.
        outcome = Outcome.LEFT if step.again else Outcome.UNJUDGED
        if trial.after is not None:
            before, after = trial.before, trial.after
            accepted = on_rank_zero(lambda: accepts(guard, before, after))
            outcome = Outcome.RECOVERED if accepted else Outcome.LEFT
        again: Captured | None = None
        if outcome is Outcome.LEFT:
            site.roll_back(trial.snapshot)
            widths = halved_widths(step.selections, round_to)
            if widths and not step.again and self._leaves_time(trainer, next_epoch):
                outcome = Outcome.HALVED
                groups = tuple(group for group in trial.captured.groups if group.name in widths)
                decisions = as_decisions(widths, WidthReason.HALVED)
                again = replace(trial.captured, groups=groups, decisions=decisions)
        allowed = trial.before - (guard.max_drop if guard.mode == "max" else -guard.max_drop)
        verdict = Verdict(guard.monitor, trial.before, trial.after, outcome, allowed)
        return replace(step, verdict=verdict), again

    def _leaves_time(self, trainer: pl.Trainer, epoch: int | None) -> bool:
        """Whether a cut at the start of an epoch can still be judged in this fit."""
        if epoch is None or trainer.should_stop:
            return False
        if self._epochs is not None and epoch + self.patience > self._epochs:
            return False
        steps = self.patience * -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        return trainer.max_steps == -1 or trainer.global_step + steps <= trainer.max_steps


def check_logged(guard: Guard, metrics: Mapping[str, Tensor], where: str) -> None:
    """Raise ``ValueError`` unless a validation has logged the guard's metric; says what it has."""
    if guard.monitor not in metrics:
        raise ValueError(
            f"monitor is {guard.monitor!r}, not logged in {where}; logged were "
            f"{', '.join(map(repr, sorted(metrics))) or 'no metrics'}. Name one of them, or log it in "
            "every validation, the sanity check included (num_sanity_val_steps=0 leaves that out)."
        )


def monitored_value(guard: Guard, metrics: Mapping[str, Tensor]) -> float:
    """The guard's metric in the validation that was captured.

    Raises:
        ValueError: if it was not logged, and says what was; or if it is not finite.
    """
    check_logged(guard, metrics, "the validation that was captured")
    value = float(metrics[guard.monitor])
    if not math.isfinite(value):
        raise ValueError(
            f"{guard.monitor!r} is {value} in the validation that was captured, and max_drop needs a "
            "finite value to compare with: look at the learning rate, or prune earlier."
        )
    return value


def accepts(guard: Guard, before: float, after: float) -> bool:
    """Whether the drop from ``before`` to ``after`` is allowed; never if ``after`` is NaN."""
    return (before - after if guard.mode == "max" else after - before) <= guard.max_drop


def _waits(guard: Guard, trial: Trial) -> bool:
    """Whether a trial, perhaps out of a checkpoint, is one of this guard's."""
    return (trial.monitor, trial.mode) == (guard.monitor, guard.mode)


def check_judged(guard: Guard, epochs: Sequence[int], max_epochs: int | None, every: int = 1) -> None:
    """Check that every cut can be judged before the next capture, and before the fit ends.

    Args:
        guard: whose patience it takes.
        epochs: zero-based epochs whose validation is captured.
        max_epochs: of the fit; None: not known.
        every: a validation comes every ``every`` epochs.

    Raises:
        ValueError: names the epoch, and what is allowed.
    """
    ordered = sorted(epochs)
    for first, second in pairwise(ordered):
        last = _judged(guard, _judged(guard, first, every), every)
        if second <= last:
            raise ValueError(
                f"epochs has {first} and {second}, but with max_drop and patience={guard.patience} "
                "the cut after the first, and the one at half its depth that may follow, take until "
                f"epoch {last} to be judged; let the next capture come from epoch {last + 1}."
            )
    judged = _judged(guard, ordered[-1], every)
    if max_epochs is not None and judged >= max_epochs:
        raise ValueError(
            f"epochs has {ordered[-1]}, but with max_epochs={max_epochs} the cut after it cannot be "
            f"judged: with patience={guard.patience} that takes the validation of epoch {judged}. "
            "Raise max_epochs, or cut earlier."
        )


def _judged(guard: Guard, epoch: int, every: int) -> int:
    """Epoch in whose validation a cut is judged that follows another epoch."""
    due = epoch + guard.patience
    return due + -(due + 1) % every
