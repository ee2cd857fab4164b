"""What a network was last called with in training, and what it returned."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.structure.inputs import cloned


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        name: qualified name of the module; "" for the network itself.
        arguments: positional arguments, as they were before the call, outside any graph.
        keywords: the same of the arguments by name.
        outputs: what the call returned, in its graph.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: Any


class LastCall:
    """Notes the last call, with gradients, of any of some modules; where they are nested, the outermost.

    A call without gradients, or one that raises, leaves the one before it in place. Inputs are copied
    before the call, since a forward may write to them.

    Args:
        model: the network; hooks are in place between :meth:`attach` and :meth:`detach` alone.
        names: qualified names of the modules to watch, "" for ``model`` itself.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self._handles: list[RemovableHandle] = []
        self._redirected = self._resting = False
        self._forget()

    def _forget(self) -> None:
        self._running: list[tuple[str, bool]] = []  # name, and whether the call may count
        self._inputs: Any = None
        self._call: Any = None

    def attach(self, *, redirected: bool = False) -> None:
        """Watch the modules, and forget earlier calls.

        Args:
            redirected: whether a call of ``model`` from outside is no forward, but a training step that
                runs in it; Lightning hands steps to DistributedDataParallel as if they were forward.
        """
        self.detach()
        self._redirected = redirected
        for name, module in self._modules.items():
            before, after = self._hooks(name)
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                # Always: training_step may catch what forward raises, and call it again.
                module.register_forward_hook(after, with_kwargs=True, always_call=True),
            ]

    def detach(self) -> None:
        """Remove all hooks, and hold no tensors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    @property
    def last(self) -> Call | None:
        """The last call since :meth:`attach` or :meth:`drop`; None if there was none."""
        return None if self._call is None else Call(*self._call)

    def drop(self) -> None:
        """Forget the last call."""
        self._call = None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Note nothing in the body, such as a backward pass that computes activations once more."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    # Functions, not methods: a copy of the network made meanwhile would copy what methods belong to.
    def _hooks(self, name: str) -> tuple[Any, Any]:
        def before(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            is_step = self._redirected and not name and not self._running
            counts = not (is_step or self._resting) and torch.is_grad_enabled()
            if counts and not any(outer for _, outer in self._running):
                self._inputs = cloned((arguments, keywords))
            self._running.append((name, counts))

        def after(
            _module: nn.Module, _arguments: tuple[Any, ...], _keywords: dict[str, Any], outputs: Any
        ) -> None:
            if not self._running or self._running[-1][0] != name:
                return  # another hook has raised before ours was called
            _, counts = self._running.pop()
            if counts and not any(outer for _, outer in self._running):
                if outputs is not None:  # as it is where forward has raised
                    self._call = (name, *self._inputs, outputs)
                self._inputs = None

        return before, after
