"""Names of the classes, as data modules and datasets have them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAMES = ("class_names", "classes")
# Where loaders, and datasets made of others, keep what they are made of.
PARTS = ("dataset", "datasets", "iterables")
DEEPEST = 8


def class_names(*sources: Any) -> tuple[str, ...]:
    """The names of the classes in the order of their indices; empty if no source has any.

    Looked for are an attribute ``class_names`` or ``classes``, a sequence of names or a mapping from
    indices to names, of a source or of the datasets in it.

    Args:
        sources: data modules, loaders, datasets, and sequences and mappings of them; the first with
            names counts.
    """
    for source in sources:
        found = _search(source, DEEPEST)
        if found:
            return found
    return ()


def _search(source: Any, depth: int) -> tuple[str, ...]:
    if source is None or not depth:
        return ()
    for name in NAMES:
        found = _as_names(_read(source, name))
        if found:
            return found
    if isinstance(source, Mapping):
        parts: Iterable[Any] = source.values()
    elif isinstance(source, list | tuple):
        parts = source
    else:
        parts = [_read(source, name) for name in PARTS]
    return next((found for part in parts if (found := _search(part, depth - 1))), ())


def _as_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping) and value and set(value) == set(range(len(value))):
        value = [value[index] for index in range(len(value))]
    if isinstance(value, str) or not isinstance(value, Sequence):
        return ()
    return tuple(map(str, value)) if all(isinstance(entry, str | int) for entry in value) else ()


def _read(source: Any, name: str) -> Any:
    """An attribute; None if there is none, or reading it fails: no cut fails for want of a name."""
    try:
        return getattr(source, name, None)
    except Exception:
        return None
