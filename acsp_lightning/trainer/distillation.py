"""The network before the first cut teaches the one after it, without a line of the module's code.

A forward hook sees what training_step gives the network and gets from it. The teacher is run on the
same inputs when a backward pass is about to begin whose loss depends on what the network returned, and
LightningModule.backward is handed the blended loss; the module's own loss stays as it is, for whoever
logs it.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from acsp_lightning.capture.calls import LastCall
from acsp_lightning.capture.dependence import depends_on
from acsp_lightning.functional import distillation_loss, taught_loss
from acsp_lightning.measure.accuracy import OutputReader
from acsp_lightning.settings import Distillation
from acsp_lightning.structure.copying import check_copyable, eager_copy
from acsp_lightning.structure.forward import output_tensors
from acsp_lightning.trainer.averages import evaluated_copy
from acsp_lightning.trainer.checks import TAUGHT, check_alone
from acsp_lightning.trainer.loggers import PREFIX
from acsp_lightning.trainer.ranks import run_on_all_ranks
from acsp_lightning.trainer.survey import FitSurvey
from acsp_lightning.trainer.teacher import Teacher
from acsp_lightning.trainer.uncut import Uncut, load_uncut, save_uncut


class Teaching:
    """The teacher of one fit; without a :class:`Distillation` there is none.

    Args:
        distillation: how it teaches; None: not at all.
        read_outputs: finds class scores in what forward of the LightningModule returns.

    Attributes:
        uncut: what keeps the network before the first cut; None: there is none, or no cut yet.
    """

    def __init__(self, distillation: Distillation | None, read_outputs: OutputReader | None) -> None:
        self.uncut: Uncut | None = None
        self._distillation = distillation
        self._read_outputs = read_outputs
        self._begun = False
        self._teacher: Teacher | None = None
        self._calls: LastCall | None = None
        self._undo: Callable[[], None] | None = None  # puts the module's own backward back
        self._warned: set[str] = set()
        self._new_epoch()

    def _new_epoch(self) -> None:
        """Forget what the training steps of an epoch have shown."""
        self._stepped = self._asked = self._unscored = self._taught = False

    # -- the teacher ---------------------------------------------------------------------------------

    def check(self, callback: pl.Callback, trainer: pl.Trainer) -> None:
        """Refuse what cannot be taught, before the first epoch.

        Raises:
            ValueError: if other callbacks cut as well.
            TypeError: if no copy can be made of the network; names the attribute.
        """
        if self._distillation is not None:
            check_alone(callback, trainer, "distillation", TAUGHT)
            check_copyable(trainer.lightning_module)

    def keep(self, trainer: pl.Trainer, epoch: int | None, *, is_first: bool) -> None:
        """Write the network that is about to be cut to a file, for a resume and for its user.

        Args:
            trainer: of the fit.
            epoch: zero-based, whose validation was captured for the cut.
            is_first: whether there was no cut before.
        """
        kept = save_uncut(trainer, epoch)
        if is_first:
            self.uncut = kept

    def begin(self, trainer: pl.Trainer, survey: FitSurvey) -> None:
        """Let the network as it is before the first cut be the teacher; later cuts change nothing."""
        if self._distillation is not None and not self._begun:
            self._begin(trainer, survey, evaluated_copy(trainer))

    def resume(self, trainer: pl.Trainer, survey: FitSurvey, epoch: int | None) -> None:
        """Let the network be the teacher that was kept before the first cut, after ``epoch``.

        Raises:
            FileNotFoundError: if its file is not there; says where it was looked for.
        """
        if self._distillation is None:
            return
        network = eager_copy(trainer.lightning_module)
        kept = self.uncut
        self.uncut = run_on_all_ranks(lambda: load_uncut(network, trainer, kept, epoch))[0]
        self._begin(trainer, survey, network)

    def _begin(self, trainer: pl.Trainer, survey: FitSurvey, network: nn.Module) -> None:
        self._begun = True
        inputs, largest = survey.example.traced, survey.num_classes - 1
        precision = trainer.precision_plugin
        teacher = Teacher(network, precision, inputs, self._read_outputs, largest)
        if teacher.readers:
            self._teacher = teacher
            self._calls = LastCall(trainer.lightning_module, teacher.readers)
            # What is compiled by now knows of no hooks.
            torch.compiler.reset()
        else:
            self._warn(_no_scores(trainer.lightning_module))

    def state(self) -> Uncut | None:
        """What a checkpoint has to tell of the network before the first cut."""
        if self._teacher is not None and self.uncut is None:
            self._warn(
                "distillation is set, but the uncut network is in no file: there is no ModelCheckpoint, "
                "in whose folder it would be, or it could not be written. Fits that go on from the "
                "checkpoint written now will find no teacher."
            )
        return self.uncut

    def forget(self) -> None:
        """Hold no network, and leave no hook behind; where the first one was kept is remembered."""
        self._give_back()
        if self._calls is not None:
            self._calls.detach()
        self._calls = self._teacher = None

    # -- the steps -----------------------------------------------------------------------------------

    def before_batch(self, trainer: pl.Trainer) -> None:
        """Watch the network in a training step."""
        if self._calls is not None:
            wrapped = trainer.strategy.model is not trainer.lightning_module
            self._calls.attach(redirected=wrapped)

    def before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Let the backward pass that comes begin at the blended loss, if that of the user is taught."""
        self._give_back()
        if self._calls is None or self._teacher is None or self._distillation is None:
            return
        self._asked = True
        call = self._calls.last
        scores = None if call is None else self._teacher.scores_of(call)
        self._unscored |= call is not None and scores is None
        if call is None or scores is None or not depends_on(loss, scores, output_tensors(call.outputs)):
            return
        self._calls.drop()
        self._taught = True
        distance = distillation_loss(scores, self._teacher.answer(call), self._distillation.temperature)
        trainer.lightning_module.log(f"{PREFIX}distillation_loss", distance.detach(), on_step=True)
        self._blend_once(trainer.lightning_module, _as_losses(trainer, distance), self._calls)

    def _blend_once(self, module: pl.LightningModule, distance: Tensor, calls: LastCall) -> None:
        """Let the next call of ``module.backward``, which users may override, get the blended loss.

        In place the loss cannot be changed: in manual optimisation it is the user's own tensor, which
        may be logged afterwards, and which its own backward pass may need as it was.
        """
        assert self._distillation is not None
        weight, attributes = self._distillation.weight, vars(module)
        own = {name: attributes[name] for name in ("backward",) if name in attributes}

        def undo() -> None:
            del attributes["backward"]
            attributes.update(own)

        def backward(loss: Tensor, *arguments: Any, **keywords: Any) -> None:
            self._give_back()
            with calls.resting():
                module.backward(taught_loss(loss, distance, weight), *arguments, **keywords)

        attributes["backward"], self._undo = backward, undo

    def _give_back(self) -> None:
        """Put the module's own backward back, if the pass that was to be taught has not begun."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def after_batch(self) -> None:
        """Watch it no more: whoever copies, saves or validates the module finds no hook."""
        self._give_back()
        if self._calls is not None:
            self._calls.detach()
            self._stepped = True

    def after_epoch(self, trainer: pl.Trainer) -> None:
        """Warn if nothing could be taught; single steps may have another purpose."""
        module = trainer.lightning_module
        could = self._stepped and (self._asked or not module.automatic_optimization)
        if self._teacher is not None and could and not self._taught:
            message = _no_scores(module) if self._unscored else _no_call(module, self._teacher)
            self._warn(message)
        self._new_epoch()

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)


def _as_losses(trainer: pl.Trainer, distance: Tensor) -> Tensor:
    """A loss as large, beside that of training_step, as Lightning makes that before it goes backward."""
    if trainer.lightning_module.automatic_optimization:
        distance = distance / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return distance if scaler is None else scaler.scale(distance)


def _no_scores(module: nn.Module) -> str:
    return (
        f"distillation is set, but {type(module).__name__} returns no logits of classes, (B, C), by "
        "which it could be compared with the uncut network. Pass read_outputs=, a function of what "
        "forward returns that returns them. Training goes on without a teacher."
    )


def _no_call(module: nn.Module, teacher: Teacher) -> str:
    called = " or ".join(f"self.{name}(...)" if name else "self(...)" for name in teacher.readers)
    return (
        f"distillation is set, but in a whole epoch no loss of {type(module).__name__} could be taught: "
        f"it has to depend on what {called} returned last in training_step, the whole network, and "
        "manual optimization has to go backward by self.manual_backward(loss). Training goes on without "
        "a teacher."
    )
