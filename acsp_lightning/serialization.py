"""Frozen records as plain data and back, for checkpoints that load under ``weights_only=True``."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from acsp_lightning.capture.statistics import Activations, Captured, InputMoments
from acsp_lightning.functional import (
    ChannelSelection,
    ClassSeparation,
    ClassSums,
    WidthDecision,
    WidthReason,
)
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.measure.latency import Latency, LatencyComparison
from acsp_lightning.report import PruningStep
from acsp_lightning.report.step import Outcome, Verdict
from acsp_lightning.selection.maps import GroupView
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.trainer.guard import Trial
from acsp_lightning.trainer.snapshot import Snapshot

KIND = "__kind__"

RECORDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Activations,
        Captured,
        ChannelGroup,
        ChannelSelection,
        ClassSeparation,
        ClassSums,
        Comparison,
        Complexity,
        GroupView,
        InputMoments,
        Latency,
        LatencyComparison,
        LayerSide,
        NetworkCurve,
        Outcome,
        PruningPlan,
        PruningStep,
        SideCut,
        Snapshot,
        Trial,
        Verdict,
        WidthDecision,
        WidthReason,
    )
}


def to_plain(value: Any) -> Any:
    """``value`` in dicts, lists, tuples, strings, numbers and tensors (on the CPU, detached).

    Raises:
        TypeError: if there is something in it that :func:`from_plain` could not give back.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Enum):
        return {KIND: type(value).__name__, "value": value.value}
    if is_dataclass(value) and type(value).__name__ in RECORDS:
        content = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        return {KIND: type(value).__name__, **content}
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(entry) for entry in value)
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's float64 is a float, but weights_only does not read it
    raise TypeError(f"a {type(value).__name__} cannot be stored as plain data")


def from_plain(data: Any) -> Any:
    """The inverse of :func:`to_plain`.

    Raises:
        ValueError: if a record is of an unknown kind or has other fields than this version knows.
    """
    if isinstance(data, Mapping):
        content = {key: from_plain(entry) for key, entry in data.items() if key != KIND}
        if KIND not in data:
            return content
        try:
            return RECORDS[data[KIND]](**content)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the record {data[KIND]!r} with {sorted(content)} was written by another version of "
                f"acsp_lightning ({type(error).__name__}: {error})."
            ) from error
    if isinstance(data, list | tuple):
        return type(data)(from_plain(entry) for entry in data)
    return data
