"""Which attributes the forward of a network may read: those that its code mentions."""

import inspect
from collections.abc import Iterable, Iterator
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

# Code that mentions one of these may read any attribute.
_DYNAMIC = {"getattr", "hasattr", "vars", "__dict__", "__getattribute__", "eval", "exec"}


def mentioned_attributes(modules: Iterable[nn.Module]) -> dict[type[nn.Module], set[str] | None]:
    """By class of ``modules``, the names that ``forward`` of any of them may read.

    Whatever is called is followed by its name: methods and properties of all classes, and functions of
    the files that they are written in. Thus what only a training step writes down is told from what
    decides about forward.

    Returns:
        None for a class whose attributes are read by names that its code does not tell.
    """
    modules = list(modules)
    bases = {type(m): [b for b in type(m).__mro__ if b not in nn.Module.__mro__] for m in modules}
    pending: list[tuple[type | None, Any]] = [
        (base, vars(base)["forward"])
        for own in bases.values()
        for base in own
        if "forward" in vars(base)
    ]
    pending += [(type(m), vars(m)["forward"]) for m in modules if "forward" in vars(m)]
    names: set[str] = set()
    unknown: set[type | None] = set()
    followed: set[FunctionType] = set()
    while pending:
        owner, value = pending.pop()
        function = _function(value)
        if function is None:  # compiled, or an object that can be called
            unknown.add(owner)
            continue
        if function in followed:
            continue
        followed.add(function)
        mentioned = set(_names(function.__code__))
        if mentioned & _DYNAMIC:
            unknown.add(owner)
        for name in mentioned:
            pending += ((None, found) for found in _global_functions(function, name))
        for name in mentioned - names:
            for base in {base for own in bases.values() for base in own}:
                if _is_code(vars(base).get(name)):
                    pending.append((base, vars(base)[name]))
        names |= mentioned
    if None in unknown:
        return dict.fromkeys(bases)
    return {kind: None if unknown & {kind, *own} else names for kind, own in bases.items()}


def _is_code(value: object) -> bool:
    return isinstance(value, (FunctionType, property, cached_property, staticmethod, classmethod))


def _function(value: Any) -> FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    value = inspect.unwrap(getattr(value, "__func__", value))
    return value if isinstance(value, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _global_functions(function: FunctionType, name: str) -> Iterator[FunctionType]:
    """The functions that ``name`` may mean where ``function`` is written."""
    places = [function.__globals__]
    places += [vars(place) for place in places[0].values() if isinstance(place, ModuleType)]
    for place in places:
        found = place.get(name)
        if isinstance(found, FunctionType):
            library = (found.__module__ or "").partition(".")[0]
            if library not in ("torch", "numpy"):
                yield found
