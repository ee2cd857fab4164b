"""What a network was last called with in training, and what it returned."""

from collections.abc import Iterable
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
        self.forget()

    def attach(self) -> None:
        """Watch the modules, and forget earlier calls."""
        self.detach()
        for name, module in self._modules.items():
            before, after = self._hooks(name)
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
            ]

    def detach(self) -> None:
        """Remove all hooks, and forget the call."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()

    def forget(self) -> None:
        """Hold no tensors; a call that has begun does not count."""
        self._depth = 0  # of watched modules that are running, one inside the other
        self._inputs: Any = None
        self._call: Any = None

    def take(self) -> Call | None:
        """The last call since the one taken before, and forget it; None if there was none."""
        call = self._call
        self.forget()
        return None if call is None else Call(*call)

    # Functions, not methods: a copy of the network made meanwhile would copy what methods belong to.
    def _hooks(self, name: str) -> tuple[Any, Any]:
        def before(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                if self._depth == 0:
                    self._inputs = cloned((arguments, keywords))
                self._depth += 1

        def after(
            _module: nn.Module, _arguments: tuple[Any, ...], _keywords: dict[str, Any], outputs: Any
        ) -> None:
            if torch.is_grad_enabled():
                self._depth -= 1
                if self._depth == 0:
                    self._call = (name, *self._inputs, outputs)
                    self._inputs = None

        return before, after
