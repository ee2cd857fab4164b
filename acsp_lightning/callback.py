"""The conductor: when to capture, when to cut, what to log. It holds no formula and cuts no weight."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.capture.statistics import Captured
from acsp_lightning.checkpoint import resize_on_load
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.pipeline import make_cut
from acsp_lightning.progress import shown_by
from acsp_lightning.report import PruningStep
from acsp_lightning.settings import PruningSettings, check_epochs, with_hints, with_options
from acsp_lightning.trainer.averages import averaged_copies
from acsp_lightning.trainer.capturing import FitCapture
from acsp_lightning.trainer.checks import (
    check_schedule,
    check_step_schedule,
    check_trainable,
    check_trainer,
    check_training_batch,
    is_fast_dev_run,
    parameter_shapes,
    passed_epochs,
)
from acsp_lightning.trainer.copies import Copies
from acsp_lightning.trainer.cut import FitSite
from acsp_lightning.trainer.distillation import Teaching
from acsp_lightning.trainer.guard import GuardMonitor, check_judged
from acsp_lightning.trainer.monitors import spare_stopping
from acsp_lightning.trainer.progress_bars import display_of
from acsp_lightning.trainer.ranks import check_ranks_agree, run_on_all_ranks
from acsp_lightning.trainer.reporting import announce_cut, announce_end, announce_verdict
from acsp_lightning.trainer.resume import fix_loop_progress, verify_before_load
from acsp_lightning.trainer.state import CallbackState
from acsp_lightning.trainer.survey import FitSurvey, survey_fit


@with_options
@with_hints
@dataclass(eq=False)
class ACSPPruningCallback(PruningSettings, pl.Callback):
    """Removes channels for good at chosen epochs and lets the Trainer go on with the smaller network.

    In the validation loop of a chosen epoch forward hooks gather class moments of every layer's own
    output. At the start of the next training epoch the channels are clustered by what they separate,
    a knee of the curve over the number of clusters says how many stay, and the others are cut out of
    the network, in place. Optimizer, scheduler, scaler and loggers go on; optimizer state is cut with
    the parameters.

    Args:
        epochs: zero-based epochs whose validation is captured; the cut comes at the start of the
            following epoch. In 0..max_epochs - 2, no repeats.
        {options}

    Attributes:
        steps: one :class:`PruningStep` for each cut of the last fit, also for those that were rolled
            back; after ``fit(ckpt_path=...)`` those of the checkpoint, and what follows. Every fit
            starts a new list.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Tracing and FLOPs use ``example_input_array`` as it is, or else the first samples of a
        validation batch (two to trace, one to count). Of several validation loaders the first is
        captured.
    """

    # The options are fields of the settings, so that constructor, help and YAML have them from there.
    epochs: Sequence[int] = field(kw_only=False)

    def __post_init__(self) -> None:
        """Check every argument."""
        super().__post_init__()
        check_epochs(self.epochs, self.latency_table)
        self.epochs = tuple(self.epochs)
        if self.guard is not None:
            check_judged(self.guard, self.epochs, max_epochs=None)
        self.steps: list[PruningStep] = []
        self._monitor = GuardMonitor(self.guard)
        self._teaching = Teaching(self.distillation, self.read_outputs)
        self._visited: list[str] = []
        self._settled: set[int] = set()  # epochs in which no layer was left to capture
        self._tried = False  # the first training batch
        self._initial: Complexity | None = None
        self._survey: FitSurvey | None = None  # from the start of a fit to its end
        self._capture = FitCapture()
        self._copies = Copies()
        self._captured: Captured | None = None
        self._load_hooks: list[RemovableHandle] = []
        self._stage = ""
        self._unreadable: ValueError | None = None  # a state that another version wrote

    @property
    def state_key(self) -> str:
        """Tells several of these callbacks apart in one checkpoint."""
        return self._generate_state_key(
            epochs=list(self.epochs), include=list(self.include), exclude=list(self.exclude)
        )

    # -- before training: refuse what cannot work ---------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let pruned checkpoints load, and check the Trainer, the schedule and the parameters."""
        check_trainer(trainer)
        self._stage = stage
        self._forget()  # a fit that failed has had no teardown
        self._load_hooks.append(verify_before_load(pl_module, lambda: trainer.ckpt_path))
        for module in (pl_module, *averaged_copies(trainer)):
            self._load_hooks.append(resize_on_load(module))
        if stage != "fit" or is_fast_dev_run(trainer):
            return
        self.steps, self._visited, self._initial, self._unreadable = [], [], None, None
        self._settled, self._tried = set(), False
        self._teaching = Teaching(self.distillation, self.read_outputs)
        check_schedule(self.epochs, trainer)
        self._monitor.begin(self, trainer, self.epochs)
        # DistributedDataParallel would tell one rank of a mismatch, and let the others hang.
        check_ranks_agree(lambda: parameter_shapes(pl_module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a state that cannot be read, a network that cannot train, and one that cannot teach."""
        if self._unreadable is not None:
            raise self._unreadable
        if not is_fast_dev_run(trainer):
            check_trainable(pl_module)  # not earlier: configure_model may have built it
            self._teaching.check(self, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the labels to be captured, trace the network and measure it, before the first epoch."""
        if is_fast_dev_run(trainer):
            rank_zero_info("fast_dev_run has no second epoch: nothing will be pruned.")
            return
        run_on_all_ranks(lambda: check_step_schedule(self.epochs, trainer, self._monitor.patience))
        self._survey = survey_fit(trainer, self, self._copies, self._initial, has_cut=bool(self.steps))
        self._initial = self._initial or self._survey.complexity
        waiting = {self._captured.epoch} if self._captured else set()
        self._settled |= passed_epochs(self._missed() - waiting, trainer)
        if self.steps:
            self._teaching.resume(trainer, self._survey, self.steps[0].epoch)

    def _site(self, trainer: pl.Trainer, before_cut: Callable[[], None] = lambda: None) -> FitSite:
        return FitSite(trainer, self, self._copies, before_cut)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Try the first batch of a fit, if such are to serve BatchNorm; let the teacher see each."""
        if self.batchnorm_batches and not self._tried and self._survey is not None:
            run_on_all_ranks(lambda: check_training_batch(pl_module, batch, self))
        self._tried = True
        self._teaching.before_batch(trainer)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:
        """Blend the loss with the distance from the teacher."""
        self._teaching.before_backward(trainer, loss)

    def on_after_backward(self, *_: Any) -> None:
        """See which copies of the network learn by themselves, while gradients are there."""
        self._copies.note_gradients()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave no hook behind."""
        self._teaching.after_batch()

    # -- capture, in the validation loop of a chosen epoch -------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Trace the network as it is now and install the hooks; the last validation of an epoch wins."""
        if self._survey is None or trainer.sanity_checking:
            return
        spare_stopping(trainer)
        self._monitor.before_validation(trainer)
        if trainer.current_epoch in self.epochs:
            self._start_capture(trainer.current_epoch, pl_module, self._survey)

    def _start_capture(self, epoch: int, pl_module: pl.LightningModule, survey: FitSurvey) -> None:
        self._capture.stop()
        self._captured = None
        self._survey, groups = survey.due(pl_module, self, self._visited)
        if not groups:
            rank_zero_warn(f"Every layer was visited before epoch {epoch}; no cut.")
            self._settled.add(epoch)
            return
        self._capture.begin(pl_module, groups.values(), self._survey, self.selection.grid)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tell the hooks the labels of the batch that comes."""
        enough = self.max_batches is not None and batch_idx >= self.max_batches
        if dataloader_idx == 0 and not enough:
            self._capture.expect(trainer, batch, self.read_batch)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Let the hooks rest until the next labels."""
        self._capture.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks, and keep the statistics of all processes for the cut."""
        if trainer.sanity_checking:
            self._monitor.after_sanity_check(trainer)
        if self._survey is None or trainer.sanity_checking:
            return
        captures = self._capture.is_running
        metric = self._monitor.after_validation(trainer, captured=captures)
        if captures:
            self._captured = self._capture.finish(trainer, metric, self._survey)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind; what waits for its cut goes into the checkpoints written now."""
        self._capture.stop()
        self._teaching.forget()
        self._survey = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind, and hold no data of the user's."""
        self._stage = ""
        self._forget()

    def _forget(self) -> None:
        self._capture.stop()
        self._captured = None  # or the next fit would cut by it
        self._copies = Copies()
        self._monitor.forget()
        self._teaching.forget()
        self._survey = None
        for handle in self._load_hooks:
            handle.remove()
        self._load_hooks.clear()

    # -- the cut, at the start of a training epoch ---------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Roll back a cut that did not recover, and keep the network that is about to be cut."""
        # Before checkpoints of this epoch are written; from the start of an epoch no fit can resume.
        self._teaching.after_epoch(trainer)
        self._judge_if_due(trainer, trainer.current_epoch + 1)
        spare_stopping(trainer)
        if self._captured is not None and self._captured.decisions is None:
            self._teaching.keep(trainer, self._captured.epoch, is_first=not self.steps)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut what the last validation captured."""
        # Resumed from a checkpoint that a validation has written, a fit goes on here.
        self._judge_if_due(trainer, trainer.current_epoch)
        if self._captured is not None:
            # What came out of a checkpoint lies on the CPU.
            activations = self._captured.activations.to(pl_module.device)
            with shown_by(display_of(trainer)):
                self._cut(trainer, replace(self._captured, activations=activations))

    def _cut(self, trainer: pl.Trainer, captured: Captured) -> None:
        assert self._survey is not None, "on_train_start comes first"
        self._teaching.begin(trainer, self._survey)
        site = self._site(trainer, lambda: self._monitor.open(site, trainer.current_epoch, captured))
        try:
            example = self._survey.example
            step = make_cut(site, captured, self, example, self._initial, earlier=self.steps)
            self.steps.append(step)
        except BaseException:
            self._monitor.forget()  # a checkpoint that is written now has no record to judge
            raise
        finally:
            if site.is_cut:
                self._captured = None
                self._visited += [g.name for g in captured.groups[: self.layers_per_epoch]]
        announce_cut(trainer, step, self)

    def _judge(self, trainer: pl.Trainer, next_epoch: int | None) -> None:
        """Keep the last cut, or roll it back and have it made again, at half the depth."""
        site, step = self._site(trainer), self.steps[-1]
        self.steps[-1], again = self._monitor.judge(trainer, site, step, next_epoch, self.round_to)
        if self.steps[-1].rolled_back:
            self._captured = again  # what else was captured is of a network that is no more
        announce_verdict(trainer, self.steps[-1], self)

    def _judge_if_due(self, trainer: pl.Trainer, next_epoch: int) -> None:
        trial = self._monitor.trial
        if trial is not None and trial.after is not None:
            self._judge(trainer, next_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum up the cuts of the run, and say which one is missing."""
        if self._monitor.trial is not None:
            self._judge(trainer, None)
        if self._survey is None:
            return
        self._captured = None  # a cut that waits is not made any more
        missed, example = self._missed(), self._survey.example
        self.steps[:] = announce_end(trainer, self._site(trainer), self.steps, missed, example, self)

    def _missed(self) -> set[int]:
        return set(self.epochs) - self._settled - {step.epoch for step in self.steps}

    # -- checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The steps so far and what waits for its cut, as plain data and tensors."""
        return CallbackState(
            steps=self.steps,
            visited=self._visited,
            initial=self._initial,
            captured=self._captured,
            trial=self._monitor.trial,
            uncut=self._teaching.state(),
            copies=self._copies.records(),
            settled=sorted(self._settled),
        ).to_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the Trainer pass over no validation that is to be captured, and no epoch after a cut."""
        # Any validation after the first cut may be one that judges.
        judged = range(min(self.epochs), sys.maxsize)
        fix_loop_progress(checkpoint, judged if self.guard is not None else self.epochs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a test after a fit leaves what that did."""
        if self._stage in ("validate", "test", "predict") and self.steps:
            return
        try:
            state = CallbackState.from_dict(state_dict)
        except ValueError as error:
            self._unreadable = error
            return
        self.steps = state.steps
        self._visited = state.visited
        self._initial = state.initial
        self._captured = state.captured
        self._monitor.resume(state.trial)
        self._teaching.uncut = state.uncut
        self._settled = set(state.settled)
        self._copies.resume(state.copies)
