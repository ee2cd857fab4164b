"""Frozen results as JSON and back."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Lists, dicts, numbers and strings; tensors become lists, and what is not finite None.

    Args:
        value: dataclasses, mappings, sequences, enums, tensors and plain values, nested in any way.
    """
    if isinstance(value, Tensor):
        return to_json(value.tolist())
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return value


def from_json(kind: type[T], data: Any) -> T:
    """The inverse of :func:`to_json` for a dataclass.

    Numbers in tensors come back as int64 or float64, and None among them as NaN.

    Args:
        kind: the dataclass.
        data: what :func:`to_json` made of one.

    Raises:
        ValueError: if ``data`` is no such thing: names the first field that does not fit.
    """
    found: T = _read(kind, data, kind.__name__)
    return found


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        (kind,) = (one for one in inner if one is not type(None))
        return _read(kind, data, where)
    if origin is Literal:
        return _expect(data in inner, data, where)
    if origin is tuple and inner[-1] is not Ellipsis:
        _expect(isinstance(data, list) and len(data) == len(inner), data, where)
        return tuple(_read(one, entry, where) for one, entry in zip(inner, data, strict=True))
    if origin in (tuple, Sequence):
        _expect(isinstance(data, list), data, where)
        return tuple(_read(inner[0], entry, where) for entry in data)
    if origin is Mapping:
        _expect(isinstance(data, dict), data, where)
        return {key: _read(inner[1], entry, f"{where}[{key!r}]") for key, entry in data.items()}
    if kind is Tensor:
        return _tensor(data, where)
    if is_dataclass(kind):
        return _record(kind, data, where)
    if issubclass(kind, Enum):
        return kind(_expect(data in [member.value for member in kind], data, where))
    if kind is float and (data is None or isinstance(data, int)):
        return math.nan if data is None else float(data)
    return _expect(type(data) is kind, data, where)


def _record(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), data, where)
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    needed = {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }
    if not needed <= set(data) <= names:
        raise ValueError(
            f"{where} has the fields {sorted(data)} and must have {sorted(names)}: another version of "
            "acsp_lightning wrote it."
        )
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in data})


def _tensor(data: Any, where: str) -> Tensor:
    try:
        values = torch.tensor(_with_nan(data), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} holds no array of numbers ({error}).") from error
    return values if _has_float(data) else values.long()


def _with_nan(data: Any) -> Any:
    if isinstance(data, list):
        return [_with_nan(entry) for entry in data]
    return math.nan if data is None else data


def _has_float(data: Any) -> bool:
    if isinstance(data, list):
        return any(_has_float(entry) for entry in data)
    return data is None or isinstance(data, float)


def _expect(fits: bool, data: Any, where: str) -> Any:
    if not fits:
        raise ValueError(
            f"{where} is {str(data)[:60]!r}; this version of acsp_lightning writes no such thing."
        )
    return data
