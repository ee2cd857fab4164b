"""A part of a forward pass: what comes before it is replayed, what comes after it is not run."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acsp_lightning.structure.forward import run_forward


@dataclass(frozen=True, slots=True)
class Recording:
    """One forward pass.

    Attributes:
        begins: when the only call of a module began, by qualified name.
        ends: when it ended.
        outputs: what it returned, of the modules that can be replayed.
    """

    begins: Mapping[str, int]
    ends: Mapping[str, int]
    outputs: Mapping[str, Any]


def record_forward(model: nn.Module, inputs: tuple[Any, ...]) -> Recording:
    """Run ``model`` once and keep what its modules return."""
    begins: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    outputs: dict[str, Any] = {}
    clock = iter(range(1 << 62))
    replayable = {
        name
        for name, module in model.named_modules()
        # Hooks of others may change outputs, and would do it again; scripted modules have no forward.
        if name and not module._forward_hooks and not isinstance(module, torch.jit.ScriptModule)
    }

    def before(name: str) -> Any:
        def hook(*_: object) -> None:
            begins.setdefault(name, []).append(next(clock))

        return hook

    def after(name: str) -> Any:
        def hook(_module: nn.Module, _arguments: object, output: Any) -> None:
            ends.setdefault(name, []).append(next(clock))
            if name in replayable:
                outputs[name] = _copied(output)

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(name)))
        handles.append(module.register_forward_hook(after(name)))
    try:
        run_forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = {name for name, times in begins.items() if len(times) == len(ends.get(name, ())) == 1}
    return Recording(
        {name: begins[name][0] for name in once},
        {name: ends[name][0] for name in once},
        {name: output for name, output in outputs.items() if name in once},
    )


def part_of_forward(
    model: nn.Module, inputs: tuple[Any, ...], recording: Recording, layers: Collection[str]
) -> Callable[[], list[Tensor]]:
    """A forward pass from the first of ``layers`` to the last; its outputs are none.

    Args:
        model: the one that was recorded, in the same mode.
        inputs: those that were recorded.
        recording: of the pass.
        layers: names of modules that were called once.
    """
    begin = min(recording.begins[layer] for layer in layers)
    last = max(layers, key=lambda layer: recording.ends[layer])
    replayed = _outermost([name for name in recording.outputs if recording.ends[name] < begin])

    def run() -> list[Tensor]:
        with _replayed(model, {name: recording.outputs[name] for name in replayed}):
            handle = model.get_submodule(last).register_forward_hook(_stop)
            try:
                run_forward(model, inputs)
            except _StopForward:
                pass
            finally:
                handle.remove()
        return []

    return run


class _StopForward(BaseException):
    """Ends a forward pass; no error, so that no forward that catches errors catches it."""


def _stop(*_: object) -> None:
    raise _StopForward


def _outermost(names: Collection[str]) -> list[str]:
    """The names without those below others."""
    known = set(names)
    return [name for name in names if not any(parent in known for parent in _parents(name))]


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@contextmanager
def _replayed(model: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Let modules return copies of ``outputs`` and compute nothing."""
    attributes = {name: vars(model.get_submodule(name)) for name in outputs}
    own = {name: attributes[name]["forward"] for name in outputs if "forward" in attributes[name]}

    def replay(output: Any) -> Callable[..., Any]:
        return lambda *_, **__: _copied(output)

    try:
        for name, output in outputs.items():
            attributes[name]["forward"] = replay(output)
        yield
    finally:
        for name in outputs:
            del attributes[name]["forward"]
            if name in own:
                attributes[name]["forward"] = own[name]


def _copied(output: Any) -> Any:
    """Copies of the tensors, since forward may go on in place."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, output)
