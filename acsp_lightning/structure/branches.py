"""Outputs of layers on their way to the sums that they are added in."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.unfold import has_rows

ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
# BatchNorm channels of less than this share of the largest scale cannot make up for anything.
LEAST_SCALE = 1e-3
# Elements from which on a tensor counts for memory: most that a pass makes are copies of small buffers.
COUNTED = 2**10


@dataclass(frozen=True, slots=True)
class Branch:
    """A tensor that is a consumer's output, or what one BatchNorm made of it.

    Only as long as its version is the same: an activation may have been applied in place.
    """

    layer: str
    module: nn.Module
    version: int
    norm: nn.Module | None = None

    @property
    def scale(self) -> Tensor | None:
        """What the BatchNorm multiplies channels by, (O,); None without one."""
        if not isinstance(self.norm, _BatchNorm) or self.norm.running_var is None:
            return None
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        return scale if self.norm.weight is None else scale * self.norm.weight

    def in_own_units(self, rows: Tensor, uncut: Tensor | None = None) -> Tensor:
        """Rows of something that is added to the tensor, as the consumer would have to give them.

        Channels whose scale is tiny beside those of the ``uncut`` network make up for nothing.
        """
        scale = self.scale
        if scale is None:
            return rows
        usable = scale.abs() > LEAST_SCALE * (scale if uncut is None else uncut).abs().max()
        return torch.where(usable, rows / torch.where(usable, scale, 1.0), 0.0)


class Sums(TorchFunctionMode):
    """Calls back before two tensors of one shape are added, one of them being a branch.

    Of two branches the one counts that the other is not made of; if neither is, the left one, or the
    right one where the callback returns False for the left.
    """

    def __init__(self, found: Callable[[Branch, Tensor, Tensor], bool]) -> None:
        super().__init__()
        self._found = found
        self._branches = WeakIdKeyDictionary()
        self._sources = WeakIdKeyDictionary()  # layers that a tensor was made of
        self._made = WeakIdKeyDictionary()  # all that count, whatever they were made of
        self._is_running = False

    def note(self, branch: Branch, output: Tensor) -> None:
        """Take ``output`` for a branch."""
        self._branches[output] = branch
        self._sources[output] = self._made_of(output) | {branch.layer}

    @property
    def held(self) -> int:
        """Bytes of all tensors that functions returned and that are still there, but for small ones."""
        with torch._C.DisableTorchFunction():
            storages = [tensor.untyped_storage() for tensor in self._made]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def branch(self, tensor: Tensor) -> Branch | None:
        """The branch that a tensor is, unless it was changed in place since."""
        branch: Branch | None = self._branches.get(tensor)  # type: ignore[no-untyped-call]
        return branch if branch is not None and branch.version == tensor._version else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Entered once for every pass that waits, it is told of each function as many times.
        if self._is_running:
            return func(*args, **(kwargs or {}))
        if func in ADDITIONS and not kwargs and len(args) == 2:
            self._add(*args)
        self._is_running = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._is_running = False
        with torch._C.DisableTorchFunction():
            for tensor in _tensors(result):
                if tensor.numel() >= COUNTED:
                    self._made[tensor] = None
        sources = frozenset[str]().union(*map(self._made_of, _tensors((args, kwargs))))
        if sources:
            # What works in place and returns nothing changes its first argument.
            for tensor in _tensors(args[:1] if result is None else result):
                self._sources[tensor] = sources
        return result

    def _add(self, left: Any, right: Any) -> None:
        if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.shape != right.shape:
            return
        for own, other in ((left, right), (right, left)):
            branch = self.branch(own)
            # What is made of the output itself cannot be made up for by it.
            if branch is None or branch.layer in self._made_of(other):
                continue
            if self._found(branch, own, other):
                return

    def _made_of(self, tensor: Tensor) -> frozenset[str]:
        sources: frozenset[str] = self._sources.get(tensor, frozenset())  # type: ignore[no-untyped-call]
        return sources


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors among arguments or results, also in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@contextmanager
def watched_branches(
    model: nn.Module,
    layers: Iterable[str],
    sums: Sums,
    before: Callable[[str, nn.Module, Any], None] | None = None,
    after: Callable[[Branch, Any, Tensor], None] | None = None,
) -> Iterator[None]:
    """Hooks on layers, and on the sums that they write into.

    Args:
        model: run by the body, in eval mode.
        layers: names of linear layers and convolutions.
        sums: is told of all branches.
        before: called with the name, the layer and what it is given.
        after: called with every branch, the first argument of its layer or norm, and what that gave.
    """
    handles: list[RemovableHandle] = []

    def hook_in(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if before is not None:
                before(layer, module, args[0] if args else kwargs.get("input"))

        return hook

    def note(branch: Branch, given: Any, output: Tensor) -> None:
        if after is not None:
            after(branch, given, output)
        sums.note(branch, output)

    def hook_out(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Subclasses may be called otherwise, and return anything.
            if isinstance(output, Tensor):
                given = args[0] if args else kwargs.get("input")
                note(Branch(layer, module, output._version), given, output)

        return hook

    def hook_norm(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        source = sums.branch(args[0]) if args else None
        # A norm of the batch scales by what it is given.
        if source is not None and source.norm is None and module.running_var is not None:
            branch = Branch(source.layer, source.module, output._version, module)
            note(branch, args[0], output)

    with evaluation_state(model):
        try:
            for layer in layers:
                module = model.get_submodule(layer)
                if has_rows(module):
                    handles.append(module.register_forward_pre_hook(hook_in(layer), with_kwargs=True))
                    handles.append(module.register_forward_hook(hook_out(layer), with_kwargs=True))
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    handles.append(module.register_forward_hook(hook_norm))
            with sums:
                yield
        finally:
            for handle in handles:
                handle.remove()
