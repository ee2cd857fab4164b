"""Passes of a network on several batches that wait for each other at the same places.

What is fitted to all samples halfway through a network has to be known before any of them goes on. To
keep all of them waiting takes the memory of one large batch; to begin anew for every layer takes as many
passes as there are layers. Here as many passes wait as there is room for, each where it was called from
(a greenlet); the others are given up, and begin anew when it is their turn.
"""

import contextvars
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from acsp_lightning.structure.restoring import containers_in, entries_of

# Bytes of what waiting passes hold. Where there are more samples, passes begin anew at the first layers,
# whose maps are large and which are soon reached, and wait at the last.
ROOM = 2**28

# Attributes of every module that a pass without gradients does not read.
UNREAD = frozenset(name for name in vars(nn.Module()) if "backward" in name or "state_dict" in name)


class Lockstep:
    """Passes of a network, one for each batch, in turns.

    A pass waits only where nothing but its own calls remembers it: if forward has changed attributes of
    modules, the random state, autocast or the grad mode by then, the other passes would see it, and it
    begins anew instead. The default dtype, which a pass sets for itself, is that of whoever runs.

    Args:
        model: the network; in the state that every pass is to find it in.
        passes: what runs it on each batch; when called again it has to do the same again.
        held: bytes that passes hold which were not given up.

    Attributes:
        current: index of the pass that runs.
    """

    def __init__(
        self, model: nn.Module, passes: Sequence[Callable[[], object]], held: Callable[[], int]
    ) -> None:
        self.current = 0
        self._model = model
        self._passes = passes
        self._held = held
        self._begun: dict[int, greenlet] = {}
        self._reached: dict[int, Hashable] = {}
        self._told: set[tuple[int, Hashable]] = set()
        self._settle: dict[Hashable, Callable[[], None]] = {}
        self._settled: set[Hashable] = set()

    def is_settled(self, place: Hashable) -> bool:
        """Whether all passes have met there; whoever begins anew finds what was made of it."""
        return place in self._settled

    def meet(
        self,
        place: Hashable,
        tell: Callable[[], None],
        settle: Callable[[], None],
        meanwhile: AbstractContextManager[object] | None = None,
    ) -> bool:
        """Called by a pass: wait until all others are here as well.

        Args:
            place: the same for all of them.
            tell: called once for every pass, in order.
            settle: called once, after all have told; may change parameters.
            meanwhile: entered while others run.

        Returns:
            Whether the pass has waited. If not, the place was settled before it came by.
        """
        if place in self._settled:
            return False
        if (self.current, place) not in self._told:
            self._told.add((self.current, place))
            tell()
        self._settle[place] = settle
        own = torch.get_default_dtype()
        with meanwhile or nullcontext():
            getcurrent().parent.switch(place)
        torch.set_default_dtype(own)
        return True

    def run(self, places: Collection[Hashable]) -> None:
        """Run the passes until some places are settled, or to their ends if they do not come there."""
        before = _surroundings(self._model)
        left = list(range(len(self._passes)))
        try:
            while left and not self._settled.issuperset(places):
                for index in left:
                    if self._reached.get(index) in self._settled or index not in self._reached:
                        self._go_on(index, before)
                left = [index for index in left if index in self._reached]
                if left:
                    place = self._reached[left[0]]
                    self._settle.pop(place)()
                    self._settled.add(place)
        finally:
            for index in [*self._begun]:
                self._give_up(index)

    def _go_on(self, index: int, before: list[object]) -> None:
        """Let a pass run to the next place that is not settled, or to its end."""
        self.current = index
        if index not in self._begun:
            self._begun[index] = greenlet(self._passes[index])
            self._begun[index].gr_context = contextvars.copy_context()
        running, outside = self._begun[index], torch.get_default_dtype()
        place = running.switch()
        torch.set_default_dtype(outside)
        if running.dead:
            del self._begun[index]
            self._reached.pop(index, None)
            return
        self._reached[index] = place
        alone = len(self._passes) == 1
        if not alone and (self._held() > ROOM or not _same(before, _surroundings(self._model))):
            self._give_up(index)

    def _give_up(self, index: int) -> None:
        self.current, running = index, self._begun.pop(index)
        if not running.dead:  # as it is where forward has failed
            running.throw()


def _surroundings(model: nn.Module) -> list[object]:
    """What a pass could change that others see: compared by identity, but for plain values."""
    found: list[Any] = [torch.get_rng_state(), torch.is_grad_enabled()]
    for device in dict.fromkeys(parameter.device for parameter in model.parameters()):
        if torch.amp.is_autocast_available(device.type):
            found.append(torch.is_autocast_enabled(device.type))
        if device.type == "cuda":
            found.append(torch.cuda.get_rng_state(device))
    for module in model.modules():
        for name, value in vars(module).items():
            if name in UNREAD:
                continue
            found.append(value)
            for container in containers_in(value):
                found += entries_of(container)
        found += [buffer._version for buffer in module._buffers.values() if buffer is not None]
    return found


def _same(before: list[object], after: list[object]) -> bool:
    return len(before) == len(after) and all(map(_is_same, before, after))


def _is_same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, bool | int | float | str):
        return type(one) is type(other) and one == other
    # The random state.
    return isinstance(one, Tensor) and isinstance(other, Tensor) and _equal_bytes(one, other)


def _equal_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype == torch.uint8 and torch.equal(one, other)
