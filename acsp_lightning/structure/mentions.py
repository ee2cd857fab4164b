"""Which attributes the forward of a network may read: those that its code mentions."""

import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

# Code that mentions one of these may read any attribute.
_DYNAMIC = {"getattr", "hasattr", "vars", "__dict__", "__getattribute__", "attrgetter", "eval", "exec"}

# Methods of Lightning read what is its own, under whatever name (``hparams`` asks hasattr).
_LIGHTNING = {"lightning", "pytorch_lightning"}

# Functions of these read no attribute of a user's module.
_LIBRARIES = {"torch", "numpy", *_LIGHTNING}


def mentioned_attributes(modules: Iterable[nn.Module]) -> dict[type[nn.Module], set[str] | None]:
    """By class of ``modules``, the names that ``forward`` of any of them may read.

    Whatever is called is followed by its name: methods and properties of all classes, functions that
    modules hold in attributes, and functions of the files and the closures that they are written in.
    Thus what only a training step writes down is told from what decides about forward.

    Returns:
        None for a class whose attributes are read by names that its code does not tell, or by code that
        cannot be read.
    """
    modules = list(modules)
    bases = {type(m): _bases(type(m)) for m in modules}
    kinds: dict[type, set[type]] = {}  # of modules, by the class whose code they run
    for kind, own in bases.items():
        for base in own:
            kinds.setdefault(base, set()).add(kind)
    held = _held(modules)
    pending: list[tuple[Collection[type], Any]] = [
        (kinds[base], vars(base)["forward"]) for base in kinds if "forward" in vars(base)
    ]
    pending += [({type(m)}, vars(m)["forward"]) for m in modules if "forward" in vars(m)]
    names: set[str] = set()
    unknown: set[type] = set()
    followed: set[FunctionType] = set()
    while pending:
        readers, value = pending.pop()
        function = _function(value)
        if function is None:  # compiled, or an object that can be called
            unknown.update(readers)
            continue
        if function in followed:
            continue
        followed.add(function)
        mentioned = set(_names(function.__code__))
        if mentioned & _DYNAMIC:
            unknown.update(readers)
        pending += ((readers, code) for code in _enclosed(function))
        for name in mentioned:
            pending += ((bases.keys(), found) for found in _global_functions(function, name))
        for name in mentioned - names:
            pending += held.get(name, ())
            pending += (
                (kinds[base], vars(base)[name]) for base in kinds if _is_code(vars(base).get(name))
            )
        names |= mentioned
    return {kind: None if kind in unknown else names for kind in bases}


def _bases(kind: type[nn.Module]) -> list[type]:
    """The classes whose code a module of some class may run."""
    return [
        base
        for base in kind.__mro__
        if base not in nn.Module.__mro__ and _library(base.__module__) not in _LIGHTNING
    ]


def _library(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _held(modules: Iterable[nn.Module]) -> dict[str, list[tuple[Collection[type], Any]]]:
    """What attributes of modules run if they are called, by their names, and for which classes."""
    found: dict[str, list[tuple[Collection[type], Any]]] = {}
    for module in modules:
        for name, value in vars(module).items():
            for code in _code(value):
                found.setdefault(name, []).append(({type(module)}, code))
    return found


def _code(value: object) -> Iterator[Any]:
    """What a call of an object runs, of users and of other packages."""
    if isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _code(part)
    elif isinstance(value, FunctionType | MethodType):
        if _library(value.__module__) not in _LIBRARIES:
            yield value
    elif isinstance(value, nn.Module | type | BuiltinFunctionType):
        return
    elif callable(value) and _library(type(value).__module__) not in _LIBRARIES:
        yield type(value).__call__


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


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """What the variables around a function run if they are called."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield from _code(cell.cell_contents)


def _global_functions(function: FunctionType, name: str) -> Iterator[FunctionType]:
    """The functions that ``name`` may mean where ``function`` is written."""
    places = [function.__globals__]
    places += [vars(place) for place in places[0].values() if isinstance(place, ModuleType)]
    for place in places:
        found = place.get(name)
        if isinstance(found, FunctionType) and _library(found.__module__) not in _LIBRARIES:
            yield found
