"""A network that teaches: frozen, heard by nobody but the loss, and asked where its class scores are."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn

from acsp_lightning.capture.calls import Call
from acsp_lightning.measure.accuracy import OutputReader, class_scores
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import output_tensors, run_forward
from acsp_lightning.trainer.ranks import broadcast_


class Teacher:
    """A copy of the network of a fit, in eval mode, that learns nothing.

    Args:
        network: the copy, from :func:`eager_copy`, which is the teacher's from now on.
        precision: of the fit.
        inputs: arguments of forward, to try it with.
        read_outputs: finds class scores in what forward returns; None: as :func:`class_scores`.
        largest: the largest label.

    Attributes:
        readers: how to read the class scores of every module that may be taught, by qualified name, ""
            being the network itself; empty if there are none.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        inputs: tuple[Any, ...],
        read_outputs: OutputReader | None,
        largest: int,
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._precision = precision
        self._largest = largest
        broadcast_(network.buffers())  # BatchNorm has seen other batches on every process
        drop_listeners(network, inputs)
        self.readers: Mapping[str, OutputReader | None] = scoring_modules(
            network, inputs, read_outputs, largest
        )

    def scores_of(self, call: Call) -> Tensor | None:
        """The class scores, (B, C), that a call of the student has returned; None if there are none."""
        return class_scores(call.outputs, self.readers[call.name], self._largest)

    def answer(self, call: Call) -> Tensor:
        """The teacher's class scores for the inputs of a call, (B, C)."""
        module = self._network.get_submodule(call.name)
        # In half precision as training_step runs; under inference_mode nothing could be learned from it.
        with self._precision.forward_context(), torch.no_grad():
            outputs = module(*call.arguments, **call.keywords)
        scores = class_scores(outputs, self.readers[call.name], self._largest)
        assert scores is not None, "the same module in eval mode has returned some before"
        return scores


def drop_listeners(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Remove the forward hooks without which the network returns the same: they only listen.

    A hook that counts, logs or collects for its user would do so for two networks. One that belongs to
    the network, since it computes a weight or changes an output, stays.

    Args:
        network: a copy; the hooks of others are left alone.
        inputs: arguments of forward, to compare its outputs for, in eval mode.
    """
    tables = [t for m in network.modules() for t in (m._forward_pre_hooks, m._forward_hooks) if t]
    if not tables:
        return

    def outputs() -> list[Tensor]:
        with evaluation_state(network):
            return output_tensors(run_forward(network, inputs))

    expected = outputs()

    def is_changed() -> bool:
        with suppress(Exception):  # of a hook that needs what another one does
            found = outputs()
            return not (len(found) == len(expected) and all(map(torch.equal, found, expected)))
        return True

    kept = [OrderedDict(table) for table in tables]
    for table in tables:
        table.clear()
    if not is_changed():
        return
    for table, hooks in zip(tables, kept, strict=True):
        table.update(hooks)
    for table in tables:
        for key in list(table):
            before = OrderedDict(table)
            del table[key]
            if is_changed():
                table.clear()
                table.update(before)  # in their order


def scoring_modules(
    model: nn.Module, inputs: tuple[Any, ...], read_outputs: OutputReader | None, largest: int
) -> dict[str, OutputReader | None]:
    """The modules that stand for the whole network, since they return the class scores of its forward.

    Nothing that learns comes before them in forward, so that a cut does not change their inputs.

    Args:
        model: left unchanged.
        inputs: arguments of forward.
        read_outputs: finds class scores in the outputs of forward; None: as :func:`class_scores`.
        largest: the largest label.

    Returns:
        How to read the scores of each, by qualified name, "" being the model itself; empty if forward
        returns no class scores, or probabilities, which have lost what the temperature softens.
    """
    outputs = _outputs_of_first(model, inputs)
    scores = class_scores(outputs[""], read_outputs, largest)
    if scores is None or _are_probabilities(scores):
        return {}
    found: dict[str, OutputReader | None] = {}
    for name in (name for name, _ in model.named_modules() if name in outputs):  # from the outside in
        for reader in (read_outputs, None):
            with suppress(Exception):  # it reads outputs of forward, and these may be others
                if torch.equal(class_scores(outputs[name], reader, largest), scores):  # type: ignore[arg-type]
                    found[name] = reader
                    break  # the user's own, which may know outputs of train mode as well
    return found


def _outputs_of_first(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What modules return before which nothing has a parameter, by name.

    Neither have others with parameters run before them, but for those that they are in, nor are their
    inputs computed from parameters of these.
    """
    outputs: dict[str, Any] = {}
    late: set[str] = set()
    begun: list[str] = []  # modules with parameters

    def hooks(name: str, learns: bool) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(_module: nn.Module, arguments: Any, keywords: Any) -> None:
            given = output_tensors((arguments, keywords))
            others = [other for other in begun if other and not f"{name}.".startswith(f"{other}.")]
            if others or any(tensor.requires_grad for tensor in given):
                late.add(name)
            if learns:
                begun.append(name)

        def after(_module: nn.Module, _inputs: Any, found: Any) -> None:
            outputs[name] = found

        return before, after

    handles = []
    with evaluation_state(model, grad=True):
        try:
            for name, module in model.named_modules():
                before, after = hooks(name, any(p is not None for p in module._parameters.values()))
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after))
            run_forward(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return {name: found for name, found in outputs.items() if name not in late}


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all())
