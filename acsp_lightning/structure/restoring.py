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

# Entries of a container; one that holds more has data of the user, to copy which would take long.
MOST = 10_000


@contextmanager
def state_restored(model: nn.Module, *, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Put back what forward passes in the body change: running ranges, counters, caches.

    Buffers get back their objects and their values, attributes that a module rebinds their objects, and
    dicts, lists and sets in attributes, also one in another, what they held, up to :data:`MOST` entries.

    Args:
        model: any module.
        but: submodules whose buffers and attributes keep what the body makes of them.
    """
    spared = {id(module) for module in but}
    kept = [(m, dict(vars(m)), dict(m._buffers)) for m in model.modules() if id(m) not in spared]
    tensors = [b for _, _, own in kept for b in own.values() if b is not None]
    values = [(b, b.detach().clone(), b.requires_grad) for b in tensors]
    contents = _contents(
        value for _, own, _ in kept for name, value in own.items() if name not in _OF_EVERY_MODULE
    )
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


def _contents(values: Iterable[Any]) -> list[tuple[Any, Any]]:
    """All containers among values, and in them, each once with a shallow copy."""
    found: dict[int, tuple[Any, Any]] = {}
    pending = _opened(values)
    while pending:
        container = pending.pop()
        if id(container) in found:
            continue
        if type(container) is not tuple:
            found[id(container)] = (container, container.copy())
        pending += _opened(container.values() if type(container) in _MAPPINGS else container)
    return list(found.values())


def _opened(values: Iterable[Any]) -> list[Any]:
    kinds = (*_CONTAINERS, tuple)
    return [value for value in values if type(value) in kinds and len(value) <= MOST]


def _refill(container: Any, held: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(held)
    else:
        container.update(held)
