"""Whether a cut does what it says: the same as zeroing the channels where consumers read them.

The tracer takes layers as a whole, views for shuffles and numbers for widths, as they mostly are. Before
a group is offered, it is therefore cut for a trial, in place, and put back at once. What every consumer
and the network give is compared with the whole network in which the same channels were zeroed at the
consumers' inputs. There they are also spoiled where they are made: nothing but their consumers may
notice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.forward import (
    UnsupportedStructureError,
    call_counts,
    evaluation_state,
    output_tensors,
    run_forward,
    train_mode,
    varied,
)
from acsp_lightning.structure.groups import ChannelGroup, Tracing, by_reason
from acsp_lightning.structure.layers import channel_dim
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.sides import Side
from acsp_lightning.structure.surgery import reversible_cut
from acsp_lightning.structure.tracing import trace_groups

STREAMS = (
    "Every layer that can be cut writes into a residual sum, so the sums are cut, as with "
    "residual=True. Set residual=True to say so yourself, or leave layers whole with exclude."
)

# Largest deviation allowed, as a share of the largest value of the layer's output. Reordered sums and
# TF32 stay below a thousandth of it per layer; a wrong index is of order one.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}

# Noise in dropped channels, in units of the largest value around it. Operators that mix channels
# weakly (local response normalisation: 1e-4 of the squares) must show beyond the tolerance.
SPOIL = 100.0

# Of a forward that skips layers at random, in which each of them is likely to be called.
TRAINING_PASSES = 16


def prunable_groups(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool = False,
) -> Tracing:
    """Trace ``model`` and keep what can be cut: :func:`trace_groups`, then :func:`verify_groups`.

    Where every layer writes into a residual sum (RepVGG), the sums are offered all the same.

    Raises:
        UnsupportedStructureError: if nothing is left, with the reasons, or as :func:`trace_groups`.
        ValueError: if a pattern matches no layer.
    """
    tracing = trace_groups(model, inputs, include=include, exclude=exclude, residual=residual)
    tracing = verify_groups(model, inputs, tracing)
    if not tracing.groups and not residual:
        sums = trace_groups(model, inputs, include=include, exclude=exclude, residual=True)
        sums = verify_groups(model, inputs, sums)
        tracing = replace(sums, streams=bool(sums.groups))
    if not tracing.groups:
        reasons = by_reason(tracing.left_whole)
        raise UnsupportedStructureError(
            f"No layer of {type(model).__name__} can be pruned with include={list(include)}, "
            f"exclude={list(exclude)}, residual={residual}. The output layer is never cut. "
            f"{reasons or 'No other layer was asked for'}."
        )
    return tracing


def verify_groups(model: nn.Module, inputs: tuple[Any, ...], tracing: Tracing) -> Tracing:
    """Keep the groups whose cut equals zeroed channels; move the others to ``left_whole``.

    All groups are tried together first, and in halves only if that fails, so that the usual cost is
    four forward passes.

    Args:
        model: any module; left as it was.
        inputs: example arguments of ``forward``.
        tracing: what :func:`acsp_lightning.structure.tracing.trace_groups` found.
    """
    inputs = varied(inputs)
    with evaluation_state(model):
        trains = _training_forward(model, inputs) is None
        reasons = _evaluated_only(model, inputs, tracing.groups) if trains else {}
        trained = [group for group in tracing.groups if group.name not in reasons]
        reasons |= _all_reasons(model, inputs, trained, trains)
    return Tracing(
        tuple(group for group in tracing.groups if group.name not in reasons),
        {**tracing.left_whole, **reasons},
        tracing.summed,
    )


def _evaluated_only(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """Why groups are not those that train: forward calls one of their layers in eval mode alone."""
    idle = set(call_counts(model, inputs))
    with train_mode(model):
        for _ in range(TRAINING_PASSES):
            idle -= set(call_counts(model, inputs))
            if not idle:
                break
            torch.rand(1)  # layers that are skipped at random (LayerDrop) get another draw
    found = {}
    for group in groups:
        layer = next((side.layer for side in group.sides if side.layer in idle), None)
        if layer is not None:
            found[group.name] = (
                f"forward calls {layer!r} in evaluation and never in training, so what would "
                "be cut is not the one that trains (an averaged copy?)"
            )
    return found


def _all_reasons(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> dict[str, str]:
    """Why groups must stay whole, by name; all others can be cut at once."""
    reasons: dict[str, str] = {}
    while found := _reasons(model, inputs, [g for g in groups if g.name not in reasons], trains):
        reasons |= found
    return reasons


def _reasons(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> dict[str, str]:
    """Why some groups must stay whole; halves the set until the culprits stand alone."""
    reason = _difference(model, inputs, groups, trains) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    culprits = {
        **_reasons(model, inputs, groups[:half], trains),
        **_reasons(model, inputs, groups[half:], trains),
    }
    return culprits or _first_come(model, inputs, groups, trains)


def _first_come(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> dict[str, str]:
    """Why groups must stay whole that can be cut, but not with the ones before them."""
    accepted: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for group in groups:
        reason = _difference(model, inputs, [*accepted, group], trains)
        if reason is None:
            accepted.append(group)
        else:
            reasons[group.name] = f"together with the groups before it, {reason}"
    return reasons


def _difference(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], trains: bool
) -> str | None:
    """Cut a third of every group for a trial, at either end; what went wrong, or None."""
    for trial in (_without_front, _without_back):
        try:
            plan = build_plan(groups, {group.name: trial(group.width) for group in groups})
            difference = _trial_difference(model, inputs, groups, plan, trains)
        except Exception as error:
            difference = f"forward fails after a cut ({type(error).__name__}: {error})"
        if difference is not None:
            return difference
    return None


def _trial_difference(
    model: nn.Module,
    inputs: tuple[Any, ...],
    groups: Sequence[ChannelGroup],
    plan: PruningPlan,
    trains: bool,
) -> str | None:
    """How ``model`` cut by ``plan`` differs from itself with the same channels zeroed."""
    consumers = {side.layer for group in groups for side in group.consumers}
    producers = {side.layer for group in groups for side in group.producers}
    with (
        _spoiled_outputs(model, plan, producers),
        _zeroed_inputs(model, plan, consumers),
        _recorded(model, consumers) as expected,
    ):
        whole_outputs = output_tensors(run_forward(model, inputs))
    with reversible_cut(model, plan, keep=False):
        with _recorded(model, consumers) as found:
            outputs = output_tensors(run_forward(model, inputs))
        error = _training_forward(model, inputs) if trains else None
    if error is not None:
        raise error
    if [output.shape for output in outputs] != [output.shape for output in whole_outputs]:
        return "a cut changes the shape of the network's output"
    for layer in consumers:
        whole = expected[layer]
        dim = channel_dim(model.get_submodule(layer))
        rows = plan.kept(layer, "out")
        if rows is not None:
            whole = whole.index_select(dim, torch.tensor(rows, device=whole.device))
        if whole.shape != found[layer].shape or not _close(whole, found[layer]):
            return f"{layer!r} does not compute the same from the channels that are kept"
    if not all(_close(a, b) for a, b in zip(whole_outputs, outputs, strict=True)):
        return "the network's output is not the same from the channels that are kept"
    return None


def unseen_layers(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Layers with parameters of their own that ``forward`` calls neither in eval nor in train mode.

    No tracing sees them: whoever calls them otherwise (a head that only ``training_step`` uses) must
    not feed them channels that are cut.
    """
    with evaluation_state(model):
        called = set(call_counts(model, inputs))
        try:
            with train_mode(model):
                called |= set(call_counts(model, inputs))
        except UnsupportedStructureError:
            pass  # train mode wants other inputs than the example; nothing can be told of it
    owners = (name for name, m in model.named_modules() if next(m.parameters(False), None) is not None)
    return tuple(name for name in owners if name not in called)


def _training_forward(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """The error of one forward pass in train mode, if any; with gradients, as in training."""
    try:
        with train_mode(model), torch.enable_grad():
            run_forward(model, inputs)
    except Exception as error:
        return error
    return None


def _without_front(width: int) -> list[int]:
    """All but the first channel and others, irregular, of the first half.

    The imbalance shows where forward counts channels from the end, halves or permutes them; a number
    prime to 2 and 3 shows where it takes them in pairs, in threes or every second one.
    """
    gone = next(n for n in range(max(1, width // 3), 0, -1) if gcd(n, 6) == 1)
    others = 1 + torch.randperm(width // 2 - 1, generator=torch.Generator().manual_seed(width))
    dropped = {0, *others[: gone - 1].tolist()}
    return [channel for channel in range(width) if channel not in dropped]


def _without_back(width: int) -> list[int]:
    """The mirror image: all but the last channel and others of the second half."""
    return [width - 1 - channel for channel in reversed(_without_front(width))]


def _close(expected: Tensor, found: Tensor) -> bool:
    if not expected.is_floating_point():
        return True
    tolerance = TOLERANCE.get(expected.dtype, 1e-2)
    expected, found = wide(expected), wide(found)
    finite = expected.isfinite()  # outputs may be masked with infinities
    if not torch.equal(finite, found.isfinite()):
        return False
    expected, found = expected[finite], found[finite]
    if expected.numel() == 0:
        return True
    scale = expected.abs().amax().clamp_min(1e-12)
    return bool((expected - found).abs().amax() <= tolerance * scale)


@contextmanager
def _zeroed_inputs(model: nn.Module, plan: PruningPlan, consumers: Iterable[str]) -> Iterator[None]:
    """Zero what the plan drops where the consumers read it."""

    def zero(layer: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            tensor = args[0] if args else kwargs["input"]
            zeroed = tensor.masked_fill(_dropped(plan, layer, "in", module, tensor), 0.0)
            return ((zeroed, *args[1:]), kwargs) if args else (args, {**kwargs, "input": zeroed})

        return hook

    handles = [
        model.get_submodule(layer).register_forward_pre_hook(zero(layer), with_kwargs=True)
        for layer in consumers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _spoiled_outputs(model: nn.Module, plan: PruningPlan, producers: Iterable[str]) -> Iterator[None]:
    """Put large noise in place of what the plan drops where the producers give it."""

    def spoil(layer: str) -> Any:
        def hook(module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
            spoiled = SPOIL * output.abs().amax() * noise
            return torch.where(_dropped(plan, layer, "out", module, output), spoiled, output)

        return hook

    handles = [model.get_submodule(layer).register_forward_hook(spoil(layer)) for layer in producers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropped(plan: PruningPlan, layer: str, side: Side, module: nn.Module, tensor: Tensor) -> Tensor:
    """Where ``tensor`` holds channels that the plan drops: a mask that broadcasts to it."""
    dim = channel_dim(module)
    mask = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    mask[list(plan.kept(layer, side) or range(len(mask)))] = False
    return mask.view([-1 if axis == dim % tensor.ndim else 1 for axis in range(tensor.ndim)])


@contextmanager
def _recorded(model: nn.Module, layers: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """The outputs of ``layers`` in the forward pass that the body makes."""
    outputs: dict[str, Tensor] = {}

    def recorder(layer: str) -> Any:
        def record(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            outputs[layer] = output.detach()

        return record

    handles = [model.get_submodule(layer).register_forward_hook(recorder(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
