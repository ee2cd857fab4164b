"""Frozen records as plain data and back, by their type hints: one mechanism for checkpoints and JSON."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

T = TypeVar("T")

FORMAT = 2
"""Of the records that this version writes; 1, without a mark, is what came before."""


def to_record(value: Any, *, json: bool = False) -> dict[str, Any]:
    """A dataclass as plain data with a format mark.

    Args:
        value: dataclasses, mappings, sequences, enums, tensors and plain values, nested in any way.
        json: tensors become lists, keys strings, and what is not finite None; else tensors stay, on the
            CPU and detached, as ``torch.load(weights_only=True)`` reads them.

    Raises:
        TypeError: if there is something in it that :func:`from_record` could not return.
    """
    content: dict[str, Any] = encode(value, json)
    return {"format": FORMAT, **content}


def from_record(kind: type[T], data: Any, advice: str) -> T:
    """The inverse of :func:`to_record`.

    Args:
        kind: the dataclass.
        data: the record. Of lists in place of tensors, numbers become int64 or float64 and None NaN.
        advice: what to do with a record of another format; ends the message.

    Raises:
        ValueError: if ``data`` is no such record, or one of another format: names the first field that
            does not fit.
    """
    check_format(data, advice)
    return decode(kind, {key: value for key, value in data.items() if key != "format"})


def check_format(data: Any, advice: str) -> None:
    """Raise ``ValueError`` unless ``data`` has the mark of this version's format."""
    if not isinstance(data, Mapping):
        raise ValueError(f"it is a {type(data).__name__}, not a record.")
    if data.get("format") != FORMAT:
        found = f"format {data['format']!r}" if "format" in data else "no format mark"
        raise ValueError(
            f"it was written by another version of acsp_lightning ({found}; this one reads format "
            f"{FORMAT}). {advice}"
        )


def encode(value: Any, json: bool = False) -> Any:
    """Plain data without a format mark; arguments as in :func:`to_record`."""
    if isinstance(value, Tensor):
        return encode(value.tolist(), json) if json else value.detach().cpu()
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name), json) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key) if json else key: encode(entry, json) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [encode(entry, json) for entry in value]
        return tuple(entries) if isinstance(value, tuple) and not json else entries
    if json and isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's float64 is a float, but weights_only does not read it
    raise TypeError(f"a {type(value).__name__} cannot be stored as plain data")


def decode(kind: type[T], data: Any) -> T:
    """A dataclass from its plain data, without a format mark.

    Raises:
        ValueError: if ``data`` does not fit; names the first field that does not.
    """
    found: T = _decode(kind, data, kind.__name__)
    return found


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        (kind,) = (one for one in inner if one is not type(None))
        return _decode(kind, data, where)
    if origin is Literal:
        return _expect(data in inner, data, where)
    if origin is tuple and inner[-1] is not Ellipsis:
        _expect(isinstance(data, list | tuple) and len(data) == len(inner), data, where)
        return tuple(_decode(one, entry, where) for one, entry in zip(inner, data, strict=True))
    if origin in (tuple, list, Sequence):
        _expect(isinstance(data, list | tuple), data, where)
        entries = [_decode(inner[0], entry, where) for entry in data]
        return entries if origin is list else tuple(entries)
    if origin in (Mapping, dict):
        _expect(isinstance(data, Mapping), data, where)
        return {key: _decode(inner[1], entry, f"{where}[{key!r}]") for key, entry in data.items()}
    if kind is Tensor:
        return data if isinstance(data, Tensor) else _tensor(data, where)
    if is_dataclass(kind):
        return _decode_fields(kind, data, where)
    if issubclass(kind, Enum):
        return kind(_expect(data in [member.value for member in kind], data, where))
    if kind is float and (data is None or type(data) is int):
        return math.nan if data is None else float(data)
    if kind is torch.Size:
        return torch.Size(_expect(isinstance(data, list | tuple), data, where))
    return _expect(type(data) is kind, data, where)


def _decode_fields(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, Mapping), data, where)
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
    return kind(**{name: _decode(hints[name], data[name], f"{where}.{name}") for name in data})


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
