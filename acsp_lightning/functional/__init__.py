"""The mathematics of the method on plain tensors: no modules, no Lightning, no global random state.

Letters: N channels of a layer, C classes, P spatial positions, L = C(C-1)/2 class pairs,
k clusters.
"""

from acsp_lightning.functional.class_separation import ClassSeparation, LostPair, class_separation
from acsp_lightning.functional.clustering import (
    KMedoidsSweep,
    coverage,
    mean_simplified_silhouette,
    sweep_k_medoids,
)
from acsp_lightning.functional.config import SelectionConfig
from acsp_lightning.functional.distillation import distillation_loss, taught_loss
from acsp_lightning.functional.knee import find_knee
from acsp_lightning.functional.least_squares import RIDGE, fold_input, reconstruction_map, refit_weight
from acsp_lightning.functional.moments import ClassMoments, ClassSums, class_moments
from acsp_lightning.functional.selection import ChannelSelection, select_channels
from acsp_lightning.functional.separation import (
    Separation,
    compare_channels,
    expected_seconds,
    jeffries_matusita,
    mean_separability,
    separability_vectors,
    separation_distances,
)
from acsp_lightning.functional.width import (
    ChannelCurves,
    WidthDecision,
    WidthReason,
    decide_width,
    trace_curves,
    width_at_level,
    width_of_share,
)

__all__ = [
    "RIDGE",
    "ChannelCurves",
    "ChannelSelection",
    "ClassMoments",
    "ClassSeparation",
    "ClassSums",
    "KMedoidsSweep",
    "LostPair",
    "SelectionConfig",
    "Separation",
    "WidthDecision",
    "WidthReason",
    "class_moments",
    "class_separation",
    "compare_channels",
    "coverage",
    "decide_width",
    "distillation_loss",
    "expected_seconds",
    "find_knee",
    "fold_input",
    "jeffries_matusita",
    "mean_separability",
    "mean_simplified_silhouette",
    "reconstruction_map",
    "refit_weight",
    "select_channels",
    "separability_vectors",
    "separation_distances",
    "sweep_k_medoids",
    "taught_loss",
    "trace_curves",
    "width_at_level",
    "width_of_share",
]
