"""The way of channels through forward: marks are carried from operator to operator.

Every tensor of a forward pass has a shadow, its marks. An operator that moves values (views, slices,
concatenations, shuffles) is run on the marks as well; one that joins tensors position by position ties
their marks; what one gives that is not known is a mixture of what it was given, which pins that if it is
used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from acsp_lightning.structure import operators
from acsp_lightning.structure.channels import Channels
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.marks import none_of, pressed, thin, varying
from acsp_lightning.structure.mentions import mentioned_attributes


@dataclass(frozen=True, slots=True)
class Touch:
    """Elements of a parameter or buffer that meet channels.

    Attributes:
        name: qualified name.
        elements: flat indices, int64, (E,).
        marks: what each of them meets, (E,).
        loose: whether an element is met by several marks, as after a view that splits channels: unless
            they are tied, it belongs to none of them.
    """

    name: str
    elements: Tensor
    marks: Tensor
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """An attribute that holds a number of channels, and that the code of forward mentions.

    Where that code cannot be read, any attribute that holds the number.

    Attributes:
        owner: qualified module name.
        attribute: name of an integer, or of a list or tuple of integers.
        place: where in the list; None for an integer.
        marks: of the positions that it counts, (value,).
    """

    owner: str
    attribute: str
    place: int | None
    marks: Tensor


@dataclass(slots=True)
class Findings:
    """What a forward pass showed.

    Attributes:
        channels: the marks, their ties and pins.
        sides: the marks of every side of every layer, by layer and side.
        mixed: sides ("in") whose channels the layer mixes, and sides ("out") that it makes.
        touches: parameters over channels.
        sizes: attributes that count channels.
        norms: layers that use statistics of all of their channels.
    """

    channels: Channels = field(default_factory=Channels)
    sides: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    mixed: set[tuple[str, str]] = field(default_factory=set)
    touches: list[Touch] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries marks along while a network runs, under inference mode.

    Args:
        model: whose forward runs.

    Attributes:
        found: what was found so far.
        stack: name and module of every module that is running, the innermost last.
        suspended: carry nothing, since a layer is running that is taken as a whole.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Findings()
        self.stack: list[tuple[str, nn.Module]] = []
        self.suspended = False
        self._marks = WeakIdKeyDictionary()
        self._mixtures = WeakIdKeyDictionary()
        # What a tensor was made of parameters: their names, and which element each value came from.
        self._origins = WeakIdKeyDictionary()
        self._read = mentioned_attributes(model.modules())
        self._named: dict[int, str] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._named.setdefault(id(tensor), name)

    @property
    def channels(self) -> Channels:
        """The marks."""
        return self.found.channels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on the tensors and on their marks."""
        kwargs = kwargs or {}
        if self.suspended:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(self._is_concerned(tensor) for tensor in given):
            return func(*args, **kwargs)
        if any(self.marks(tensor) is not None for tensor in given):
            for tensor in given:  # what was mixed meets channels
                self.use(tensor)
        rule = operators.rule(func)
        if rule is None and func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        try:
            (rule or operators.unknown)(self, func, args, kwargs, result)
        except Exception:  # arguments that a rule does not know
            operators.unknown(self, func, args, kwargs, result)
        for tensor in given:
            for marks, reason in self.mixtures(tensor):
                self.mix(marks, reason, result)
        return result

    def _is_concerned(self, tensor: Tensor) -> bool:
        return tensor in self._marks or tensor in self._mixtures or bool(self.origins(tensor))

    def mix(self, marks: Tensor, reason: str, result: Any) -> None:
        """Note that tensors were made of channels that were mixed with one another.

        The channels have to stay if one of the tensors is used: joined with channels, given to a layer,
        or returned. A statistic that forward only keeps for itself keeps no channel, and whether a
        single number does (the range of an observer) is for the trial to say.
        """
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() > 1:
                known = self.mixtures(leaf)
                if not any(marks is other for other, _ in known):
                    self._mixtures[leaf] = [*known, (marks, reason)]

    def mixtures(self, tensor: Any) -> list[tuple[Tensor, str]]:
        """The channels that a tensor is a mixture of, and how they were mixed."""
        if not isinstance(tensor, Tensor):
            return []
        found: list[tuple[Tensor, str]] = self._mixtures.get(tensor, [])  # type: ignore[no-untyped-call]
        return found

    def use(self, tensor: Any, reason: str | None = None) -> None:
        """Pin the channels that a tensor is a mixture of, for a reason or for having been mixed."""
        for marks, how in self.mixtures(tensor):
            self.channels.pin(marks, reason or how)

    def marks(self, tensor: Any) -> Tensor | None:
        """The marks of a tensor; None if it carries no channel."""
        if not isinstance(tensor, Tensor):
            return None
        found: Tensor | None = self._marks.get(tensor)  # type: ignore[no-untyped-call]
        return found

    def marks_or_none(self, tensor: Tensor) -> Tensor:
        """The marks of a tensor, zeros if it carries no channel."""
        found = self.marks(tensor)
        return none_of(tensor.shape) if found is None else found

    def mark(self, tensor: Any, marks: Tensor | None) -> None:
        """Let a tensor carry marks; what they cannot be of carries none, and they are pinned."""
        if not isinstance(tensor, Tensor) or marks is None:
            return
        if marks.shape != tensor.shape:
            self.channels.pin(marks, "its channels are laid out in a way that cannot be followed")
        elif varying(marks := pressed(marks)):
            self._marks[tensor] = marks
        else:
            self._marks.pop(tensor, None)  # type: ignore[no-untyped-call]

    def origins(self, tensor: Any) -> list[tuple[str, Tensor]]:
        """Names of the parameters that a tensor was made of, and the element that each value is of."""
        if not isinstance(tensor, Tensor):
            return []
        known: list[tuple[str, Tensor]] | None
        known = self._origins.get(tensor)  # type: ignore[no-untyped-call]
        if known is None and id(tensor) in self._named and tensor.numel() > 1:
            known = [(self._named[id(tensor)], torch.arange(tensor.numel()).view(tensor.shape))]
            self._origins[tensor] = known
        return known or []

    def descend(self, tensor: Any, origins: Sequence[tuple[str, Tensor]]) -> None:
        """Note what parameters a tensor was made of."""
        if isinstance(tensor, Tensor) and origins:
            self._origins[tensor] = [(n, e) for n, e in origins if e.shape == tensor.shape]

    def touch(self, tensor: Tensor, marks: Tensor) -> bool:
        """Note that a tensor made of parameters meets marks, which broadcast with it.

        Returns:
            Whether it was made of any. One that has a single place wherever the marks differ meets none.
        """
        origins = self.origins(tensor)
        for name, elements in origins:
            elements = elements.expand_as(marks)
            alone = [elements.stride(dim) == 0 for dim in varying(marks)]
            if alone and all(alone):
                continue
            elements, met = thin(elements, marks)
            elements, met = elements.flatten(), met.flatten()
            self.found.touches.append(Touch(name, elements[met > 0], met[met > 0], any(alone)))
        return bool(origins)

    def sized(self, value: int, marks: Tensor) -> bool:
        """Note which attributes of the module that runs hold the number of some positions.

        Those that its forward cannot read do not count.

        Args:
            value: the number.
            marks: of these positions, (value,).

        Returns:
            Whether there are any.
        """
        found = [Size(*place, marks) for place in self._places(value)] if value > 1 else []
        self.found.sizes += found
        return bool(found)

    def _places(self, value: int) -> Iterator[tuple[str, str, int | None]]:
        if not self.stack:
            return
        owner, module = self.stack[-1]
        read = self._read.get(type(module))
        for attribute, held in vars(module).items():
            if read is not None and attribute not in read:
                continue
            if type(held) is int and held == value:
                yield owner, attribute, None
            elif type(held) in (list, tuple):
                for place, entry in enumerate(held):
                    if type(entry) is int and entry == value:
                        yield owner, attribute, place
