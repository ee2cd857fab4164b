"""What forward passes write into a network, put back: buffers, attributes, and what these hold."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Of every module: its registries, into which the body may put hooks of its own.
_OF_EVERY_MODULE = vars(nn.Module()).keys()

_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS = (*_MAPPINGS, list, set, deque)
_OPENED = (*_CONTAINERS, tuple)

# Entries of an attribute and of all in it; one that holds more has data of the user, which would take
# long to copy.
MOST = 10_000


@contextmanager
def state_restored(model: nn.Module, *, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Put back what forward passes in the body change: running ranges, counters, caches.

    Buffers get back their objects and their values, attributes that a module rebinds their objects, and
    dicts, lists and sets in attributes, also one in another, what they held, unless that is more than
    :data:`MOST` entries.

    Args:
        model: any module.
        but: submodules whose buffers and attributes keep what the body makes of them.
    """
    spared = {id(module) for module in but}
    kept = [(m, dict(vars(m)), dict(m._buffers)) for m in model.modules() if id(m) not in spared]
    tensors = [b for _, _, own in kept for b in own.values() if b is not None]
    values = [(b, b.detach().clone(), b.requires_grad) for b in tensors]
    contents = [
        (container, container.copy())
        for _, own, _ in kept
        for name, value in own.items()
        if name not in _OF_EVERY_MODULE
        for container in containers_in(value)
    ]
    try:
        yield
    finally:
        for module, attributes, buffers in kept:
            own = vars(module)
            for name in own.keys() - attributes.keys():
                del own[name]
            own.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for container, held in contents:
            _refill(container, held)
        with torch.no_grad():
            for buffer, value, required in values:
                if buffer.requires_grad and not required:
                    buffer.detach_()  # forward has written into it with gradients
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)  # as observers of channels do with their ranges
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def containers_in(value: Any) -> list[Any]:
    """The dicts, lists and sets that an attribute is and holds, each once; none if that is too much."""
    if type(value) not in _OPENED or not value:
        return [value] if type(value) in _CONTAINERS else []
    found: dict[int, Any] = {}
    pending, entries = [value], 0
    while pending:
        container = pending.pop()
        if id(container) in found:
            continue
        found[id(container)] = container
        entries += len(container)
        if entries > MOST:
            return []
        pending += _opened(entries_of(container))
    return [container for container in found.values() if type(container) is not tuple]


def entries_of(container: Any) -> Iterable[Any]:
    """What a container holds."""
    held: Iterable[Any] = container.values() if type(container) in _MAPPINGS else container
    return held


def _opened(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if type(value) in _OPENED]


def _refill(container: Any, held: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(held)
    else:
        container.update(held)
