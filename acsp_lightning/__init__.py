"""Structured pruning that decides by itself how many channels to keep, inside a Lightning job."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acsp_lightning.callback import ACSPPruningCallback
    from acsp_lightning.checkpoint import PrunedCheckpointMixin, load_pruned, restore_structure
    from acsp_lightning.export import Exported, export_onnx, export_program, export_state_dict
    from acsp_lightning.functional import ChannelSelection, SelectionConfig
    from acsp_lightning.measure.complexity import Complexity, measure_complexity
    from acsp_lightning.measure.conditions import LatencyAt
    from acsp_lightning.measure.latency import (
        Latency,
        LatencyComparison,
        compare_latency,
        measure_latency,
    )
    from acsp_lightning.previewing import preview
    from acsp_lightning.report import PruningStep, step_table, write_report
    from acsp_lightning.settings import Distillation, Guard, PruningSettings
    from acsp_lightning.structure.forward import UnsupportedStructureError
    from acsp_lightning.structure.plan import PruningPlan
    from acsp_lightning.structure.surgery import apply_plan

__all__ = [
    "ACSPPruningCallback",
    "ChannelSelection",
    "Complexity",
    "Distillation",
    "Exported",
    "Guard",
    "Latency",
    "LatencyAt",
    "LatencyComparison",
    "PrunedCheckpointMixin",
    "PruningPlan",
    "PruningSettings",
    "PruningStep",
    "SelectionConfig",
    "UnsupportedStructureError",
    "apply_plan",
    "compare_latency",
    "export_onnx",
    "export_program",
    "export_state_dict",
    "load_pruned",
    "measure_complexity",
    "measure_latency",
    "preview",
    "restore_structure",
    "step_table",
    "write_report",
]

_HOMES = {
    "ACSPPruningCallback": "callback",
    "ChannelSelection": "functional",
    "Complexity": "measure.complexity",
    "Distillation": "settings",
    "Exported": "export",
    "Guard": "settings",
    "Latency": "measure.latency",
    "LatencyAt": "measure.conditions",
    "LatencyComparison": "measure.latency",
    "PrunedCheckpointMixin": "checkpoint",
    "PruningPlan": "structure.plan",
    "PruningSettings": "settings",
    "PruningStep": "report",
    "SelectionConfig": "functional",
    "UnsupportedStructureError": "structure.forward",
    "apply_plan": "structure.surgery",
    "compare_latency": "measure.latency",
    "export_onnx": "export",
    "export_program": "export",
    "export_state_dict": "export",
    "load_pruned": "checkpoint",
    "measure_complexity": "measure.complexity",
    "measure_latency": "measure.latency",
    "preview": "previewing",
    "restore_structure": "checkpoint",
    "step_table": "report",
    "write_report": "report",
}

if not TYPE_CHECKING:  # or every misspelt name would be of type Any

    def __getattr__(name: str) -> Any:
        """Import what is asked for and nothing else: loading a pruned file needs no Lightning."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
