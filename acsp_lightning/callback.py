"""The conductor: when to capture, when to cut, what to log. It holds no formula and cuts no weight."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from acsp_lightning.allocation import (
    Allocation,
    check_reachable,
    decided,
    expected_wait,
    flops_budget,
    select_groups,
)
from acsp_lightning.bars import display_of
from acsp_lightning.batches import BatchReader, Example, check_labels, count_classes, read_batch
from acsp_lightning.capture import ActivationCapture, Captured, merge_activations
from acsp_lightning.checkpoint import check_before_load, mend_progress, resize_on_load
from acsp_lightning.companions import averaged_copies, save_uncut
from acsp_lightning.complexity import Complexity, measure_complexity
from acsp_lightning.functional import ChannelSelection, SelectionConfig, WidthReason
from acsp_lightning.guard import Guard
from acsp_lightning.journal import (
    announce_cut,
    announce_end,
    announce_verdict,
    announce_wait,
    surely,
)
from acsp_lightning.latency import check_batch_sizes
from acsp_lightning.loaders import training_batches, validation_batches
from acsp_lightning.operation import cut_in_fit, settle, share_consumers
from acsp_lightning.passes import collect_inputs, count_correct, recalibrate_batchnorm
from acsp_lightning.plain import from_plain, to_plain
from acsp_lightning.probation import Probation
from acsp_lightning.progress import shown_by
from acsp_lightning.ranks import agreed, decided_on_first, is_first, together
from acsp_lightning.report import PruningStep
from acsp_lightning.schedule import (
    check_count,
    check_epochs,
    check_patterns,
    check_recovery,
    check_schedule,
    check_step_schedule,
    check_trainer,
    is_dry_run,
)
from acsp_lightning.stopwatch import time_cut, uncut_copy
from acsp_lightning.structure.fidelity import prunable_groups, unseen_layers
from acsp_lightning.structure.groups import ChannelGroup, Tracing
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.refit import Refit, prepare_refit
from acsp_lightning.views import GroupView, view_groups

NO_BATCH = "The validation loader is empty; pruning captures validation batches."


class ACSPPruningCallback(pl.Callback):
    """Removes channels for good at chosen epochs and lets the Trainer go on with the smaller network.

    In the validation loop of a chosen epoch forward hooks gather class moments of every layer's own
    output. At the start of the next training epoch the channels are clustered by what they separate,
    a knee of the curve over the number of clusters says how many stay, and the others are cut out of
    the network, in place. Optimizer, scheduler, scaler and loggers go on; optimizer state is cut with
    the parameters.

    Args:
        epochs: zero-based epochs whose validation is captured; the cut comes at the start of the
            following epoch. In 0..max_epochs - 2, no repeats.
        layers_per_epoch: how many groups of layers a cut takes, first layer to last, going on from
            where the last cut ended (1 is the order of the paper); None: all groups at every cut.
        include: shell patterns on qualified layer names; only layers that match one are cut.
        exclude: shell patterns on qualified layer names; layers that match one stay whole.
        residual: also cut channels that run through residual sums; all layers that write into a sum
            lose the same ones.
        selection: how many channels stay, and which.
        recovery: "least_squares" fits the layers that read removed channels, one after the other, to
            what they gave before the cut; "fold" only folds what the kept channels tell about the
            removed ones into them, which needs no further pass; "none" leaves their weights as they are.
        recovery_samples: at most this many of the captured validation samples are looked at by
            "least_squares" and by the "damage" curve, all at once: memory grows with it.
        batchnorm_batches: training batches, at most an epoch of them, on which BatchNorm statistics
            are estimated afresh right after a cut; 0: they stay as they are.
        round_to: channel counts are raised to multiples of this, or to the width of the layer; at most
            the width of the narrowest layer.
        max_batches: at most this many validation batches are captured; None: all of them.
        read_batch: splits a batch into (inputs, labels), labels being integers of shape (B,); a
            function, from YAML its import path. Default: :func:`acsp_lightning.batches.read_batch`,
            which understands ``(x, y)`` and dicts with ``image`` or ``x`` and ``label`` or ``y``.
        report_dir: folder in which every cut has a folder of its own, with the record
            (``report.json``), a page to read (``report.html``) and its pictures; None: ``acsp`` in the
            logger's directory, or in the trainer's.
        report_pictures: also draw the page and the pictures, which takes a second or more for each cut,
            and give some of them to loggers that take pictures (TensorBoard, W&B). False: the record
            alone, of which ``acsp-lightning report`` makes them later.
        latency_batch_sizes: batch sizes at which the network is timed before and after every cut, in
            turns in one run, eagerly and without autocast, on the device of the module, by the first
            process. It costs seconds and, meanwhile, memory for a copy of the network. Empty: it is
            not timed.
        reset_monitors: let EarlyStopping, ReduceLROnPlateau and ModelCheckpoint forget at a cut how
            good the uncut network was.
        max_drop: how much ``monitor`` may be worse after a cut and ``patience`` epochs of tuning than
            in the validation that was captured, in its own units. If it is worse, weights, optimizer
            state and averaged copies go back to what they were before the cut, and the same layers are
            cut once more, at half the depth; if that is too much as well, they are left as they were.
            Learning rates and schedules go on. Meanwhile the callback's state holds a copy of the
            weights and of the optimizer's state. None: every cut stays.
        monitor: a metric that the module logs in validation.
        mode: "max" if more of it is better, "min" if less is.
        patience: epochs of tuning after which ``monitor`` is looked at, at least 1.

    Attributes:
        steps: one :class:`PruningStep` for each cut made so far, in all fits, also for those that
            were undone; after ``fit(ckpt_path=...)`` those of the checkpoint, and what follows.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Tracing and FLOPs use ``example_input_array`` as it is, or else the first samples of a
        validation batch (two to trace, one to count). Of several validation loaders the first is
        captured.
    """

    def __init__(
        self,
        epochs: Sequence[int],
        layers_per_epoch: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        residual: bool = False,
        selection: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
        recovery: Literal["least_squares", "fold", "none"] = "least_squares",
        recovery_samples: int = 512,
        batchnorm_batches: int = 0,
        round_to: int = 1,
        max_batches: int | None = None,
        read_batch: BatchReader = read_batch,
        report_dir: str | Path | None = None,
        report_pictures: bool = True,
        latency_batch_sizes: Sequence[int] = (),
        reset_monitors: bool = True,
        max_drop: float | None = None,
        monitor: str = "val_acc",
        mode: Literal["max", "min"] = "max",
        patience: int = 1,
    ) -> None:
        check_epochs(epochs)
        if layers_per_epoch is not None:
            check_count("layers_per_epoch", layers_per_epoch, at_least=1)
        if max_batches is not None:
            check_count("max_batches", max_batches, at_least=1)
        check_count("batchnorm_batches", batchnorm_batches, at_least=0)
        check_count("round_to", round_to, at_least=1)
        check_count("patience", patience, at_least=1)
        check_patterns("include", include)
        check_patterns("exclude", exclude)
        if not isinstance(selection, SelectionConfig):
            raise ValueError(
                f"selection is {selection!r}; it must be a SelectionConfig, such as "
                "SelectionConfig(keep=0.5)."
            )
        check_recovery(recovery, recovery_samples)
        check_batch_sizes("latency_batch_sizes", latency_batch_sizes)
        self.epochs = tuple(epochs)
        self.layers_per_epoch = layers_per_epoch
        self.include = tuple(include)
        self.exclude = tuple(exclude)
        self.residual = residual
        self.selection = selection
        self.recovery = recovery
        self.recovery_samples = recovery_samples
        self.batchnorm_batches = batchnorm_batches
        self.round_to = round_to
        self.max_batches = max_batches
        self.read_batch = read_batch
        self.report_dir = report_dir
        self.report_pictures = report_pictures
        self.latency_batch_sizes = tuple(latency_batch_sizes)
        self.reset_monitors = reset_monitors
        self.max_drop = max_drop
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        guard = None if max_drop is None else Guard(max_drop, monitor, mode, patience)
        if guard is not None:
            guard.check_epochs(self.epochs, max_epochs=None)
        self._probation = Probation(guard)
        self.steps: list[PruningStep] = []
        self._earlier = 0
        self._visited: list[str] = []
        self._settled: set[int] = set()  # epochs in which no layer was left to capture
        self._initial: Complexity | None = None
        self._example: Example | None = None
        self._num_classes = 0
        self._capture: ActivationCapture | None = None
        self._captured: Captured | None = None
        self._load_hooks: list[RemovableHandle] = []

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
        self._forget()  # a fit that failed has had no teardown
        self._load_hooks.append(check_before_load(pl_module, lambda: trainer.ckpt_path))
        for module in (pl_module, *averaged_copies(trainer)):
            self._load_hooks.append(resize_on_load(module))
        if stage != "fit" or is_dry_run(trainer):
            return
        # Every fit is counted by itself: the next one may be of another network.
        self._visited, self._initial, self._earlier = [], None, len(self.steps)
        self._settled = set()
        check_schedule(self.epochs, trainer)
        self._probation.begin(self, trainer, self.epochs)
        # DistributedDataParallel would tell one rank of a mismatch, and let the others hang.
        agreed(lambda: _shapes(pl_module))
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ValueError(
                f"All parameters of {type(pl_module).__name__} are frozen (requires_grad=False), so the "
                "network could not be tuned after a cut. Unfreeze some of them."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the labels to be captured, trace the network and measure it, before the first epoch."""
        if is_dry_run(trainer):
            rank_zero_info("fast_dev_run has no second epoch: nothing will be pruned.")
            return
        together(lambda: check_step_schedule(self.epochs, trainer, self._probation.patience))
        surveys = together(lambda: self._survey(trainer, pl_module))
        self._num_classes = count_classes(torch.cat([labels for _, labels in surveys]))
        # One example for all ranks: a network traced with another one may look different.
        example = next((example for example, _ in surveys if example is not None), None)
        if example is None:
            raise ValueError(NO_BATCH)
        self._example = example.to(pl_module.device)
        together(lambda: self._prepare(pl_module))

    def _survey(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Example | None, Tensor]:
        """An example of the first batch to be captured, if this process has any, and all labels."""
        # Lightning skips a loop of known length 0, and with it the exchange with other processes.
        if trainer.num_val_batches and sum(trainer.num_val_batches) == 0:
            raise ValueError(NO_BATCH)
        example: Example | None = None
        labels = [torch.empty(0, dtype=torch.int64)]
        with isolate_rng():
            for batch in validation_batches(trainer, self.max_batches):
                inputs, found = self.read_batch(batch)
                labels.append(check_labels(found).cpu())
                example = example or Example.of(pl_module, inputs)
        return example, torch.cat(labels)

    def _prepare(self, pl_module: pl.LightningModule) -> None:
        assert self._example is not None
        tracing = self._trace(pl_module)
        if tracing.left_whole:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in tracing.left_whole.items())
            rank_zero_warn(f"Some layers are left whole. {reasons}.")
        unseen = unseen_layers(pl_module, self._example.traced)
        if unseen:
            rank_zero_warn(
                f"forward calls {', '.join(map(repr, unseen))} neither in eval nor in train mode. If "
                "training_step hands them channels of the network, exclude the layers that make these."
            )
        complexity = measure_complexity(pl_module, self._example.counted)
        self._initial = self._initial or complexity
        budget = flops_budget(self.selection, self._initial, complexity)
        check_reachable(tracing.groups, self.selection, self.round_to, complexity, budget)

    def _trace(self, pl_module: pl.LightningModule) -> Tracing:
        assert self._example is not None, "on_train_start comes first"
        return prunable_groups(
            pl_module,
            self._example.traced,
            include=self.include,
            exclude=self.exclude,
            residual=self.residual,
        )

    # -- capture, in the validation loop of a chosen epoch -------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Trace the network as it is now and install the hooks; the last validation of an epoch wins."""
        if self._example is None or trainer.sanity_checking:
            return  # the example is there from the start of a fit to its end
        self._probation.before_validation(trainer)
        if trainer.current_epoch not in self.epochs:
            return
        self._stop_capture()
        self._captured = None
        groups = agreed(lambda: {group.name: group for group in self._due(pl_module)})
        if not groups:
            rank_zero_warn(f"Every layer was visited before epoch {trainer.current_epoch}; no cut.")
            self._settled.add(trainer.current_epoch)
            return
        self._capture = ActivationCapture(
            pl_module, groups.values(), self.selection.grid, self._num_classes
        )
        self._capture.attach()

    def _due(self, pl_module: pl.LightningModule) -> tuple[ChannelGroup, ...]:
        """The groups that the next cut may take."""
        groups = self._trace(pl_module).groups
        if self.layers_per_epoch is None:
            return groups
        groups = tuple(group for group in groups if group.name not in self._visited)
        # What decides for the network looks at all that is left of it.
        return groups if self.selection.looks_at_network else groups[: self.layers_per_epoch]

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
        if self._capture is not None and dataloader_idx == 0 and not enough:
            try:
                self._capture.expect(check_labels(self.read_batch(batch)[1]))
            except Exception as error:
                self._capture.fail(error)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let the hooks rest until the next labels."""
        if self._capture is not None:
            self._capture.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks, and keep the statistics of all processes for the cut."""
        if self._example is None or trainer.sanity_checking:
            return
        capture = self._capture
        metric = self._probation.after_validation(trainer, captured=capture is not None)
        if capture is None:
            return
        self._stop_capture()
        activations = merge_activations(together(capture.finish)).to(pl_module.device)
        self._captured = Captured(trainer.current_epoch, capture.groups, activations, metric)

    def _stop_capture(self) -> None:
        if self._capture is not None:
            self._capture.detach()
        self._capture = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind; what waits for its cut goes into the checkpoints written now."""
        self._stop_capture()
        self._example = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind, and hold no data of the user's."""
        self._forget()

    def _forget(self) -> None:
        self._stop_capture()
        self._captured = None  # or the next fit would cut by it
        self._probation.forget()
        self._example = None
        for handle in self._load_hooks:
            handle.remove()
        self._load_hooks.clear()

    # -- the cut, at the start of a training epoch ---------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Undo a cut that did not recover, and keep the network that is about to be cut.

        Before the checkpoints of this epoch are written; from the start of an epoch no fit can resume.
        """
        self._judge_if_due(trainer, trainer.current_epoch + 1)
        if self._captured is not None and self._captured.widths is None:
            save_uncut(trainer, self._captured.epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut what the last validation captured."""
        # Resumed from a checkpoint that a validation has written, a fit goes on here.
        self._judge_if_due(trainer, trainer.current_epoch)
        if self._captured is not None:
            # What came out of a checkpoint lies on the CPU.
            activations = self._captured.activations.to(pl_module.device)
            with shown_by(display_of(trainer)):
                self._prune(trainer, pl_module, replace(self._captured, activations=activations))

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, captured: Captured) -> None:
        assert self._example is not None, "on_train_start comes first"
        before = measure_complexity(pl_module, self._example.counted)
        refit = self._prepare_refit(trainer, pl_module, captured.groups)
        halved = None
        if captured.widths is not None:
            halved = decided(captured.widths, WidthReason.HALVED)

        def select() -> Allocation:
            wait = expected_wait(captured.groups, captured.activations, self.selection)
            announce_wait(wait, self.selection)
            return select_groups(
                pl_module,
                captured.groups,
                captured.activations,
                self.selection,
                layer_flops=before.by_layer,
                targets=None if refit is None else refit.targets,
                round_to=self.round_to,
                budget=flops_budget(self.selection, self._initial or before, before),
                widths=halved,
            )

        allocation = decided_on_first(select)
        groups = captured.groups[: self.layers_per_epoch]
        selections = {group.name: allocation.selections[group.name] for group in groups}
        plan = build_plan(groups, {name: s.kept.tolist() for name, s in selections.items()})

        views = self._look(pl_module, groups, captured, selections)
        accuracy_before = self._accuracy(trainer, pl_module)
        uncut = uncut_copy(pl_module, self.latency_batch_sizes)
        self._probation.open(trainer, captured)
        self._cut(trainer, plan, captured, refit)
        self._captured = None
        settle(trainer, forget_monitors=self.reset_monitors)
        self._visited += [group.name for group in groups]
        step = PruningStep(
            epoch=captured.epoch,
            plan=plan,
            selections=selections,
            layers=plan.filters(groups),
            before=before,
            after=measure_complexity(pl_module, self._example.counted),
            accuracy_before=accuracy_before,
            accuracy_after=self._accuracy(trainer, pl_module),
            samples=captured.activations.samples,
            comparison=allocation.comparison,
            network=allocation.network,
            latency=time_cut(uncut, pl_module, self._example.counted, self.latency_batch_sizes),
            views=views,
        )
        self.steps.append(step)
        announce_cut(trainer, step, self.report_dir, self.report_pictures)

    def _look(
        self,
        pl_module: pl.LightningModule,
        groups: Sequence[ChannelGroup],
        captured: Captured,
        selections: Mapping[str, ChannelSelection],
    ) -> dict[str, GroupView]:
        """What people will look at; nothing where that fails."""
        return decided_on_first(
            lambda: (
                surely(
                    lambda: view_groups(pl_module, groups, captured.activations, selections), "prepared"
                )
                or {}
            )
        )

    def _prepare_refit(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, groups: Sequence[ChannelGroup]
    ) -> Refit | None:
        """What consumers give now, on the first process; None on the others, and if nobody asks."""
        if self.recovery != "least_squares" and not self.selection.looks_at_network:
            return None
        found: list[Refit] = []

        def prepare() -> None:
            if not is_first():
                return
            with isolate_rng():
                batches = validation_batches(trainer, self.max_batches)
                inputs = collect_inputs(pl_module, batches, self.read_batch, self.recovery_samples)
            if inputs is not None:
                layers = dict.fromkeys(side.layer for group in groups for side in group.consumers)
                found.append(prepare_refit(pl_module, layers, inputs))

        together(prepare)
        return found[0] if found else None

    def _cut(
        self, trainer: pl.Trainer, plan: PruningPlan, captured: Captured, refit: Refit | None
    ) -> None:
        example = self._example
        assert example is not None
        activations = None if self.recovery == "none" else captured.activations
        fitted = refit if self.recovery == "least_squares" else None
        together(lambda: cut_in_fit(trainer, plan, captured.groups, example.traced, activations, fitted))
        if self.recovery == "least_squares":
            share_consumers(trainer, plan)
        if self.batchnorm_batches and plan:
            together(lambda: self._recalibrate(trainer))

    def _recalibrate(self, trainer: pl.Trainer) -> None:
        with isolate_rng():
            inputs = (self.read_batch(batch)[0] for batch in training_batches(trainer))
            recalibrate_batchnorm(trainer.lightning_module, inputs, self.batchnorm_batches)

    def _judge(self, trainer: pl.Trainer, next_epoch: int | None) -> None:
        """Keep the last cut, or undo it and have it made again, at half the depth, in the next epoch."""
        self.steps[-1], again = self._probation.judge(trainer, self.steps[-1], next_epoch, self.round_to)
        if self.steps[-1].undone:
            settle(trainer, forget_monitors=self.reset_monitors)
            self._captured = again  # what else was captured is of a network that is no more
        announce_verdict(trainer, self.steps[-1], self.report_dir, self.report_pictures)

    def _judge_if_due(self, trainer: pl.Trainer, next_epoch: int) -> None:
        trial = self._probation.trial
        if trial is not None and trial.after is not None:
            self._judge(trainer, next_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum up the cuts of the run, and say which one is missing."""
        if self._probation.trial is not None:
            self._judge(trainer, None)
        steps = self.steps[self._earlier :]
        done = self._settled | {step.epoch for step in steps}
        missed = [epoch for epoch in self.epochs if epoch not in done]
        if missed and self._example is not None:
            rank_zero_warn(
                f"No cut was made after epoch {', '.join(map(str, missed))}: the fit ended before it. "
                "Train longer, or cut earlier."
            )
        if steps and self._example is not None:
            final = measure_complexity(pl_module, self._example.counted)
            announce_end(steps, final, self._accuracy(trainer, pl_module))

    # -- data ------------------------------------------------------------------------------------------

    def _accuracy(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        def share() -> tuple[int, int] | None:
            with isolate_rng():
                batches = validation_batches(trainer, self.max_batches)
                return count_correct(pl_module, batches, self.read_batch)

        counts = together(share)
        known = [count for count in counts if count is not None]
        seen = sum(total for _, total in known)
        return sum(right for right, _ in known) / seen if seen else None

    # -- checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The steps so far and what waits for its cut, as plain data and tensors."""
        state: dict[str, Any] = to_plain(
            {
                "steps": self.steps,
                "earlier": self._earlier,
                "visited": self._visited,
                "initial": self._initial,
                "captured": self._captured,
                "trial": self._probation.trial,
            }
        )
        return state

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the Trainer pass over no validation that is to be captured, and no epoch after a cut."""
        # Any validation after the first cut may be one that judges.
        judged = range(min(self.epochs), sys.maxsize)
        mend_progress(checkpoint, judged if self._probation.patience else self.epochs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        state = from_plain(state_dict)
        self.steps = state["steps"]
        self._earlier = state["earlier"]
        self._visited = state["visited"]
        self._initial = state["initial"]
        self._captured = state["captured"]
        self._probation.resume(state["trial"])


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Shape of every parameter, by name; None for those that lazy layers have yet to make."""
    return {n: None if is_lazy(p) else tuple(p.shape) for n, p in module.named_parameters()}
