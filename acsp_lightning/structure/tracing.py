"""Which sides of which layers lose the same channels."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from statistics import mean
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from acsp_lightning.structure.aliases import all_names
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.flow import Findings
from acsp_lightning.structure.following import follow
from acsp_lightning.structure.forward import UnsupportedStructureError, call_counts
from acsp_lightning.structure.grouping import Bundle, bundles
from acsp_lightning.structure.groups import ChannelGroup, Norms, Tracing
from acsp_lightning.structure.layers import is_producer

# Of the weights: nine tenths of what the usual residual block gives, in which each layer loses half.
ENOUGH_INSIDE = 0.45


def trace_groups(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool | None = None,
    norms: Norms = "exact",
) -> Tracing:
    """Find the groups of channels of ``model`` that can be cut, as far as one forward pass can tell.

    Channels that reach the network's output unmixed (the classifier) are never offered. That a cut
    is also numerically right is the business of
    :func:`acsp_lightning.structure.verification.verify_groups`.

    Args:
        model: any module; left as it was.
        inputs: example arguments of ``forward``.
        include: shell patterns on qualified layer names, any of those of a layer that has several; a
            group is asked for if a layer that makes its channels matches one of these...
        exclude: ...and no layer that makes its channels matches one of those.
        residual: also ask for the groups that run through residual sums. None: if half of the channels
            of the others would take less than 45 % of the weights, in the mean over the layers.
        norms: whether channels that a norm takes together, or that standardised filters read, stay
            whole, or may go as if the norm were one over the channels that stay.

    Returns:
        The groups in order of execution, and what was left whole with the reason.

    Raises:
        UnsupportedStructureError: if ``forward(*inputs)`` fails, calls no convolution or linear layer,
            or cannot be followed.
        ValueError: if a pattern matches no layer.
    """
    _check_patterns(model, include, exclude)
    _check_initialised(model)
    modules = dict(model.named_modules())
    with evaluation_state(model):
        found, calls = _followed(model, inputs, norms)
    if not any(is_producer(modules[name]) for name in calls):
        raise UnsupportedStructureError(
            f"{type(model).__name__}.forward calls no convolution or linear layer; there is "
            "nothing to prune."
        )
    every = bundles(found, model, list(calls))
    names = all_names(model)
    asked = [
        bundle
        for bundle in every
        if _asked_for([name for layer in bundle.layers for name in names[layer]], include, exclude)
    ]
    chosen = residual is None and _share_inside(every) < ENOUGH_INSIDE
    residual = residual or chosen
    wanted = [bundle for bundle in asked if residual or not bundle.residual]
    groups = _named_apart([bundle.group for bundle in wanted if bundle.group is not None])
    left_whole = {
        name: "it is a recurrent layer"
        for name in calls
        if isinstance(modules[name], nn.RNNBase | nn.RNNCellBase)
    }
    left_whole |= _reasons(wanted, groups)
    summed = () if residual else _summed(asked, groups, left_whole)
    return Tracing(groups, left_whole, summed, chosen)


def _followed(model: nn.Module, inputs: tuple[Any, ...], norms: Norms) -> tuple[Findings, Counter[str]]:
    try:
        return follow(model, inputs, norms)
    except UnsupportedStructureError:
        raise
    except Exception as error:
        call_counts(model, inputs)  # which raises if forward fails by itself
        raise UnsupportedStructureError(
            f"The tracer could not follow {type(model).__name__}.forward: {type(error).__name__}: "
            f"{error}. It runs forward once under torch.inference_mode(): what needs gradients in "
            "evaluation cannot be followed."
        ) from error


def _share_inside(bundles: Sequence[Bundle]) -> float:
    """Weights that half of the channels outside of residual sums take, as a share.

    The mean over the layers, so that a cut changes it little: 0.5 for the usual residual block of two
    layers, 0.4 for torchvision's ResNet-18, which has shortcuts with layers.
    """
    groups = [bundle.group for bundle in bundles if bundle.group is not None]
    halved: dict[str, set[str]] = {side.layer: set() for group in groups for side in group.producers}
    for group in groups:
        for side in group.sides:
            if not group.residual and side.layer in halved and side.side in ("in", "out"):
                halved[side.layer].add(side.side)
    return mean(1 - 0.5 ** len(sides) for sides in halved.values()) if halved else 1.0


def _named_apart(groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Groups of one layer, each under a name of its own."""
    taken: dict[str, int] = {}
    apart = []
    for group in groups:
        number = taken[group.name] = taken.get(group.name, 0) + 1
        apart.append(group if number == 1 else replace(group, name=f"{group.name} ({number})"))
    return tuple(apart)


def _reasons(wanted: Sequence[Bundle], groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Why layers are left whole of which no channel can be cut, the first reason each."""
    cut = {side.layer for group in groups for side in group.sides if side.side == "out"}
    reasons: dict[str, str] = {}
    for bundle in wanted:
        for layer in bundle.layers:
            if bundle.reason is not None and layer not in cut:
                reasons.setdefault(layer, bundle.reason)
    return reasons


def _summed(
    asked: Sequence[Bundle], groups: Sequence[ChannelGroup], left_whole: Mapping[str, str]
) -> tuple[str, ...]:
    """Layers that sums alone keep from being cut."""
    sums = [bundle.group for bundle in asked if bundle.residual and bundle.group is not None]
    layers = dict.fromkeys(side.layer for group in sums for side in group.producers)
    cut = {side.layer for group in groups for side in group.producers}
    return tuple(layer for layer in layers if layer not in cut and layer not in left_whole)


def _asked_for(producers: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    return any(_matches(name, include) for name in producers) and not any(
        _matches(name, exclude) for name in producers
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> None:
    modules = model.named_modules(remove_duplicate=False)
    names = [name for name, module in modules if is_producer(module)]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if pattern != "*" and not any(_matches(name, (pattern,)) for name in names):
                close = get_close_matches(pattern, names, n=1, cutoff=0.0)
                hint = f" The nearest is {close[0]!r}." if close else ""
                raise ValueError(
                    f"{argument} has {pattern!r}, which matches no convolution or linear layer of "
                    f"{type(model).__name__}.{hint} Give qualified names as in named_modules(), or "
                    "shell patterns such as '*conv1'."
                )


def _check_initialised(model: nn.Module) -> None:
    """Refuse lazy layers: the first forward pass, which would be ours, turns them into others."""
    lazy = [name for name, module in model.named_modules() if _is_lazy(module)]
    if lazy:
        raise UnsupportedStructureError(
            f"{lazy[0]!r} is a lazy layer that is not initialised yet. Run the network once on a batch "
            "before it is traced (and before its optimizer is made)."
        )


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
