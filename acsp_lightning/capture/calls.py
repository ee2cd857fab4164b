"""What a network was last called with in training, and what it returned."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.structure.forward import cloned


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

    Inputs are copied before the call, since a forward may write to them.

    Args:
        model: the network; hooks are in place between :meth:`attach` and :meth:`detach` alone.
        names: qualified names of the modules to watch, "" for ``model`` itself.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self._handles: list[RemovableHandle] = []
        self._reset(redirected=False)

    def _reset(self, *, redirected: bool) -> None:
        self._redirected = redirected
        self._in_step = self._resting = False
        self._depth = 0  # of watched modules that are running, one inside the other
        self._inputs: Any = None
        self._call: Any = None

    def attach(self, *, redirected: bool = False) -> None:
        """Watch the modules, and forget earlier calls.

        Args:
            redirected: whether a call of ``model`` from outside is no forward, but a training step that
                runs in it; Lightning hands steps to DistributedDataParallel as if they were forward.
        """
        self.detach()
        self._reset(redirected=redirected)
        for name, module in self._modules.items():
            before, after = self._hooks(name)
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
            ]

    def detach(self) -> None:
        """Remove all hooks, and hold no tensors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs = self._call = None

    def take(self) -> Call | None:
        """The last call since the one taken before; None if there was none."""
        call, self._call = self._call, None
        return None if call is None else Call(*call)

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
            if self._resting or not torch.is_grad_enabled():
                return
            if self._redirected and not name and not self._in_step:
                self._in_step = True
                return
            if self._depth == 0:
                self._inputs = cloned((arguments, keywords))
            self._depth += 1

        def after(
            _module: nn.Module, _arguments: tuple[Any, ...], _keywords: dict[str, Any], outputs: Any
        ) -> None:
            if self._resting or not torch.is_grad_enabled():
                return
            if self._redirected and not name and self._depth == 0:
                self._in_step = False
                return
            self._depth -= 1
            if self._depth == 0:
                self._call = (name, *self._inputs, outputs)
                self._inputs = None

        return before, after
