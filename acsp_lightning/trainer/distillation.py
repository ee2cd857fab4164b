"""The network before the first cut teaches the one after it, without a line of the module's code.

A forward hook sees what training_step gives the network and gets from it. The teacher is run on the
same inputs when the backward pass is about to begin, and LightningModule.backward is handed the blended
loss; the module's own loss stays as it is, for whoever logs it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from acsp_lightning.capture.calls import Call, LastCall
from acsp_lightning.checkpoint import load_pruned
from acsp_lightning.functional import distillation_loss, taught_loss
from acsp_lightning.measure.accuracy import OutputReader, class_scores
from acsp_lightning.settings import Distillation
from acsp_lightning.structure.forward import counted, eager_copy, evaluation_state, run_forward
from acsp_lightning.trainer.averaging import evaluated_copy
from acsp_lightning.trainer.loggers import PREFIX
from acsp_lightning.trainer.ranks import broadcast_, run_on_all_ranks
from acsp_lightning.trainer.snapshot import kept_in, name_of_uncut
from acsp_lightning.trainer.survey import FitSurvey


class Teaching:
    """The teacher of one fit; without a :class:`Distillation` there is none.

    Args:
        distillation: how it teaches; None: not at all.
        read_outputs: finds class scores in what forward of the LightningModule returns.

    Attributes:
        uncut: file that keeps the network before the first cut; None: there is none, or no cut yet.
    """

    def __init__(self, distillation: Distillation | None, read_outputs: OutputReader | None) -> None:
        self.uncut: str | None = None
        self._distillation = distillation
        self._read_outputs = read_outputs
        self._begun = False
        self._largest = 1  # label
        self._teacher: nn.Module | None = None
        self._readers: Mapping[str, OutputReader | None] = {}
        self._calls: LastCall | None = None
        self._asked = self._taught = False  # whether a backward pass came, and whether one was taught

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
        teacher = eager_copy(trainer.lightning_module)

        def load() -> None:
            load_pruned(teacher, find_uncut(trainer, self.uncut, epoch))

        run_on_all_ranks(load)
        self._begin(trainer, survey, teacher)

    def _begin(self, trainer: pl.Trainer, survey: FitSurvey, teacher: nn.Module) -> None:
        self._begun, self._largest = True, survey.num_classes - 1
        teacher.eval().requires_grad_(False)
        broadcast_(teacher.buffers())  # BatchNorm has seen other batches on every process
        inputs = survey.example.traced
        self._readers = scoring_modules(teacher, inputs, self._read_outputs, self._largest)
        if self._readers:
            self._teacher = teacher
            self._calls = LastCall(trainer.lightning_module, self._readers)
            # What is compiled by now knows of no hooks.
            torch.compiler.reset()
        else:
            warn_of_no_scores(trainer.lightning_module)

    def before_batch(self, trainer: pl.Trainer) -> None:
        """Watch the network in a training step."""
        if self._calls is not None:
            wrapped = trainer.strategy.model is not trainer.lightning_module
            self._calls.attach(redirected=wrapped)

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Watch it no more: whoever copies, saves or validates the module finds no hook."""
        if self._calls is not None:
            self._calls.detach()
            module = trainer.lightning_module
            if not self._taught and (self._asked or not module.automatic_optimization):
                called = [f"self.{name}(...)" if name else "self(...)" for name in self._readers]
                rank_zero_warn(
                    f"distillation is set, but training_step of {type(module).__name__} does not call "
                    f"{' or '.join(called)}, the whole network, before it goes backward, in manual "
                    "optimization by self.manual_backward(loss). Training goes on without a teacher."
                )
                self.forget()

    def before_backward(self, trainer: pl.Trainer) -> None:
        """Let the backward pass that comes begin at the blended loss."""
        if self._calls is None:
            return
        self._asked = True
        call = self._calls.take()
        distance = None if call is None else self._distance(trainer, call)
        if distance is not None:
            self._taught = True
            trainer.lightning_module.log(f"{PREFIX}distillation_loss", distance.detach(), on_step=True)
            self._blend_once(trainer.lightning_module, _as_losses(trainer, distance))

    def _distance(self, trainer: pl.Trainer, call: Call) -> Tensor | None:
        """How far the network is from its teacher; None if it has returned no class scores."""
        assert self._teacher is not None
        assert self._distillation is not None
        reader = self._readers[call.name]
        scores = class_scores(call.outputs, reader, self._largest)
        if scores is None:
            warn_of_no_scores(trainer.lightning_module)
            self.forget()
            return None
        # In half precision as training_step runs; under inference_mode nothing could be learned from it.
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            teacher = self._teacher.get_submodule(call.name)
            wanted = class_scores(teacher(*call.arguments, **call.keywords), reader, self._largest)
        assert wanted is not None, "the same module in eval mode has returned some before"
        return distillation_loss(scores, wanted, self._distillation.temperature)

    def _blend_once(self, module: pl.LightningModule, distance: Tensor) -> None:
        """Let the next call of ``module.backward``, which users may override, get the blended loss.

        In place the loss cannot be changed: in manual optimisation it is the user's own tensor, which
        may be logged afterwards, and which its own backward pass may need as it was.
        """
        assert self._calls is not None
        assert self._distillation is not None
        calls, weight = self._calls, self._distillation.weight
        attributes = vars(module)
        own = {name: attributes[name] for name in ("backward",) if name in attributes}

        def backward(loss: Tensor, *arguments: Any, **keywords: Any) -> None:
            del attributes["backward"]
            attributes.update(own)
            with calls.resting():
                module.backward(taught_loss(loss, distance, weight), *arguments, **keywords)

        attributes["backward"] = backward

    def forget(self) -> None:
        """Hold no network, and leave no hook behind; where the first one was kept is remembered."""
        if self._calls is not None:
            self._calls.detach()
        self._calls = self._teacher = None


def _as_losses(trainer: pl.Trainer, distance: Tensor) -> Tensor:
    """A loss as large, beside that of training_step, as Lightning makes that before it goes backward."""
    if trainer.lightning_module.automatic_optimization:
        distance = distance / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return distance if scaler is None else scaler.scale(distance)


def scoring_modules(
    model: nn.Module, inputs: tuple[Any, ...], read_outputs: OutputReader | None, largest: int
) -> dict[str, OutputReader | None]:
    """The modules that stand for the whole network, since they return the class scores of its forward.

    They contain all layers with parameters that forward calls, so that their inputs are not cut.

    Args:
        model: left unchanged.
        inputs: arguments of forward.
        read_outputs: finds class scores in the outputs of forward; None: as :func:`class_scores`.
        largest: the largest label.

    Returns:
        How to read the scores of each, by qualified name, "" being the model itself; empty if forward
        returns no class scores, or probabilities, which have lost what the temperature softens.
    """
    outputs: dict[str, Any] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, found: Any) -> None:
            outputs[name] = found

        return note

    with evaluation_state(model), counted(model) as calls:
        handles = [m.register_forward_hook(noting(name)) for name, m in model.named_modules()]
        try:
            run_forward(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    scores = class_scores(outputs[""], read_outputs, largest)
    if scores is None or _are_probabilities(scores):
        return {}
    found: dict[str, OutputReader | None] = {}
    for name in (name for name, _ in model.named_modules() if name in outputs):  # from the outside in
        if not name or all(layer.startswith(f"{name}.") for layer in calls):
            for reader in (read_outputs, None):
                with suppress(Exception):  # it reads outputs of forward, and these may be others
                    if torch.equal(class_scores(outputs[name], reader, largest), scores):  # type: ignore[arg-type]
                        found[name] = reader
                        break  # the user's own, which may know outputs of train mode as well
    return found


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all())


def warn_of_no_scores(module: nn.Module) -> None:
    """Say that there is nothing to compare a network with its teacher by."""
    rank_zero_warn(
        f"distillation is set, but {type(module).__name__} returns no logits of classes, (B, C), by "
        "which it could be compared with the uncut network. Pass read_outputs=, a function of what "
        "forward returns that returns them. Training goes on without a teacher."
    )


def find_uncut(trainer: pl.Trainer, written: str | None, epoch: int | None) -> Path:
    """The checkpoint of the network before the first cut.

    Args:
        trainer: in a fit that goes on from a checkpoint.
        written: where it was written; None: not known.
        epoch: zero-based, whose validation was captured for that cut.

    Raises:
        FileNotFoundError: if it is nowhere; says where it was looked for, and what to do.
    """
    places = list(dict.fromkeys(_places(trainer, written, name_of_uncut(epoch))))
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        "distillation is set, and the cut in the checkpoint has the network before it as its teacher, "
        f"whose file was looked for at {', '.join(map(str, places)) or 'no place'}. Put it beside the "
        "checkpoint that the fit goes on from, or set distillation to None."
    )


def _places(trainer: pl.Trainer, written: str | None, name: str) -> Iterator[Path]:
    if trainer.ckpt_path:
        yield Path(trainer.ckpt_path).absolute().parent / name
    if written is not None:
        yield Path(written)
    folder = kept_in(trainer)
    if folder is not None:
        yield folder.absolute() / name
