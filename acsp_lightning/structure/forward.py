"""Running a network once, for inspection, without leaving a trace on it."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.inputs import cloned, describe_inputs
from acsp_lightning.structure.randomness import random_state_kept
from acsp_lightning.structure.restoring import state_restored

CHECKPOINTED = (
    "forward runs a part of the network by reentrant activation checkpointing (torch.utils.checkpoint "
    "with use_reentrant=True), which torch.jit cannot follow: pass use_reentrant=False, or checkpoint "
    "in training alone (if self.training)."
)


class UnsupportedStructureError(ValueError):
    """The network, or the part of it that was asked for, cannot be cut."""


def run_forward(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """``model(*inputs)`` on copies of the tensors in ``inputs``; two calls return the same.

    A forward that writes to its inputs or its buffers, or draws random numbers, finds the same ones
    every time, and batches that were made under ``inference_mode`` can be traced by autograd.
    """
    with random_state_kept(model), state_restored(model), default_dtype(model):
        return model(*cloned(inputs))


def call_counts(model: nn.Module, inputs: tuple[Any, ...]) -> Counter[str]:
    """How often ``forward(*inputs)`` calls every layer with parameters or buffers, by qualified name.

    Names come in the order of their first call. Layers that forward never calls are absent.

    Raises:
        UnsupportedStructureError: if forward fails; says on which inputs, and why.
    """
    with counted(model) as calls:
        try:
            run_forward(model, inputs)
        except Exception as error:
            raise UnsupportedStructureError(
                f"{type(model).__name__}.forward failed on the example inputs "
                f"({describe_inputs(inputs)}): {type(error).__name__}: {error}. Tracing needs a "
                "forward(inputs) that returns the network's outputs: implement it, or set "
                "example_input_array to inputs that it accepts."
            ) from error
    return calls


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """How often forward passes in the body call every layer with parameters or buffers, as above."""
    calls: Counter[str] = Counter()

    def counter(name: str) -> Any:
        def count(*_: object) -> None:
            calls[name] += 1

        return count

    handles = [
        module.register_forward_pre_hook(counter(name))
        for name, module in model.named_modules()
        if module._parameters or module._buffers
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_checkpointed(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether forward runs a part of the network in a way that hides it from every trace.

    That is activation checkpointing with ``use_reentrant=True``; :data:`CHECKPOINTED` says it to users.
    """
    calls: list[object] = []
    run = CheckpointFunction.apply

    def noting(*arguments: Any) -> Any:
        calls.append(arguments[0])
        return run(*arguments)

    with warnings.catch_warnings(), suppress(Exception), evaluation_state(model):
        warnings.simplefilter("ignore")  # it warns where nothing requires gradients
        CheckpointFunction.apply = staticmethod(noting)
        try:
            run_forward(model, inputs)
        finally:
            del CheckpointFunction.apply  # the inherited one comes back
    return bool(calls)


def output_tensors(outputs: Any) -> list[Tensor]:
    """All tensors in whatever ``forward`` returned: nested sequences, mappings and dataclasses.

    Of other objects the ``logits``, if they have any.
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # of a kind that PyTorch's trees do not know
            found += output_tensors(list(leaf.values()))
        elif isinstance(leaf, list | tuple):
            found += output_tensors(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += output_tensors([getattr(leaf, field.name) for field in fields(leaf)])
        elif isinstance(logits := getattr(leaf, "logits", None), Tensor):
            found.append(logits)
    return found
