"""Structured pruning that decides by itself how many channels to keep, inside a Lightning job."""

from acsp_lightning.callback import ACSPPruningCallback
from acsp_lightning.checkpoint import load_pruned, restore_structure
from acsp_lightning.complexity import Complexity, measure_complexity
from acsp_lightning.functional import ChannelSelection, SelectionConfig
from acsp_lightning.report import PruningStep
from acsp_lightning.structure.forward import UnsupportedStructureError
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.surgery import apply_plan

__all__ = [
    "ACSPPruningCallback",
    "ChannelSelection",
    "Complexity",
    "PruningPlan",
    "PruningStep",
    "SelectionConfig",
    "UnsupportedStructureError",
    "apply_plan",
    "load_pruned",
    "measure_complexity",
    "restore_structure",
]
