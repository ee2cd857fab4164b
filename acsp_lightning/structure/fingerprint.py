"""What tells that a network has changed since it was looked at."""

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from acsp_lightning.structure.mentions import mentioned_attributes

# Of the factors that a trial cannot look behind: what is multiplied by them is next to nothing.
VANISHING = 1e-3

# Entries of a list, a table or a mapping that are compared one by one.
COMPARED = 10_000

# Levels of lists, mappings and records that are looked into.
DEPTH = 8

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device, slice)
_OF_EVERY_MODULE = vars(nn.Module()).keys()  # hooks, above all
_OWN = {"_parameters", "_buffers", "_modules", "training"}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The structure of a network, as far as its forward may depend on it.

    Two are equal if the networks have the same modules (the very objects) with tensors of the same
    shapes, the same hooks and methods, and the same values of the attributes that a forward mentions.
    Values of weights do not count, but for tables of integers, and for scales that were zero and are no
    longer: a trial sees nothing behind them.

    Attributes:
        entries: one for each module; objects are held, so that no other takes their identity.
    """

    entries: tuple[Any, ...]


def fingerprint(
    model: nn.Module,
    *,
    passed_over: tuple[type[nn.Module], ...] = (),
    attributes_passed_over: Collection[str] = (),
) -> Fingerprint:
    """The fingerprint of ``model`` as it is now.

    Args:
        model: any module.
        passed_over: kinds of modules that no forward depends on, with all below them (metrics).
        attributes_passed_over: names of attributes that no forward depends on, whatever it mentions.
    """
    places: dict[int, int] = {}  # by which shared tensors are known
    modules = list(_modules(model, passed_over))
    mentioned = mentioned_attributes(module for _, module in modules)
    return Fingerprint(
        tuple(
            (
                name,
                _Same(module),
                _Same(type(module).forward),
                [
                    (
                        key,
                        places.setdefault(id(tensor), len(places)),
                        _tensor(tensor),
                        _hides(key, tensor),
                    )
                    for key, tensor in (*module._parameters.items(), *module._buffers.items())
                    if tensor is not None
                ],
                [
                    (key, _token(value))
                    for key, value in vars(module).items()
                    if _counts(key, mentioned[type(module)]) and key not in attributes_passed_over
                ],
            )
            for name, module in modules
        )
    )


def _counts(key: str, mentioned: Collection[str] | None) -> bool:
    """Whether forward may depend on an attribute."""
    if key in _OF_EVERY_MODULE:
        return key not in _OWN
    return mentioned is None or key == "forward" or key in mentioned


class _Same:
    """Equal to itself alone: holds an object that cannot be compared by what it is made of."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = object.__hash__


def _modules(
    model: nn.Module, passed_over: tuple[type[nn.Module], ...], name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """All modules under every name that they have."""
    yield name, model
    for key, child in model._modules.items():
        if child is not None and not isinstance(child, passed_over):
            yield from _modules(child, passed_over, f"{name}.{key}" if name else key)


def _token(value: Any, depth: int = 0) -> Any:
    """Something that is equal as long as ``value`` is."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return _tensor(value)
    if depth == DEPTH:
        return _Same(value)
    if isinstance(value, Namespace | SimpleNamespace) or _is_record(value):
        return _Same(value), _token(vars(value), depth + 1)
    if isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) <= COMPARED:
        entries = value.items() if isinstance(value, Mapping) else value
        tokens = [_token(entry, depth + 1) for entry in entries]
        return type(value), tokens
    return _Same(value)


def _is_record(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__")


def _tensor(tensor: Tensor) -> Any:
    """Kind and shape; and the values of tables of integers, which may say where channels go."""
    if is_lazy(tensor):
        return type(tensor), None
    kind = type(tensor), tensor.shape, tensor.dtype, tensor.device
    # Counters of a single value (batches seen) say nothing.
    if tensor.is_floating_point() or tensor.ndim == 0 or tensor.numel() > COMPARED:
        return kind
    return *kind, tensor.tolist()


def _hides(key: str, tensor: Tensor) -> bool:
    """Whether a scale is next to zero everywhere."""
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point() or key == "bias":
        return False
    if is_lazy(tensor) or tensor.numel() == 0:
        return False
    return bool(tensor.detach().abs().amax() <= VANISHING)
