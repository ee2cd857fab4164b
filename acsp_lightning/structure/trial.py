"""A trial cut: a cut network beside the whole one, in which the same channels are zeroed.

The cut is made in place and put back at once. In the whole network the channels are zeroed where they
are read and spoiled where they are made: nothing but their consumers may notice.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.forward import output_tensors
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.layers import channel_dim
from acsp_lightning.structure.norms import over_kept
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.sides import Side
from acsp_lightning.structure.surgery import reversible_cut

# Largest deviation allowed, as a share of the largest value of the layer's output. Reordered sums and
# TF32 stay below a thousandth of it per layer; a wrong index is of order one.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}

# Noise in dropped channels, in units of the largest value around it. Operators that mix channels
# weakly (local response normalisation: 1e-4 of the squares) must show beyond the tolerance.
SPOIL = 100.0

Forward = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a cut changes beyond the channels that it drops.

    Attributes:
        reason: the first thing that was found, in words for users.
        layers: where it showed; those of the groups to blame are among them, as far as can be told.
    """

    reason: str
    layers: tuple[str, ...] = ()


def trial_difference(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    forward: Forward,
    training: Callable[[], None] | None = None,
) -> Difference | None:
    """Cut a third of every group for a trial, at either end; what went wrong, or None.

    Args:
        model: in eval mode; left as it was.
        groups: cut all at once.
        forward: runs the model and returns its outputs, the same every time.
        training: runs the model in train mode, once: both ends leave layers of the same widths.
    """
    if not groups:
        return None
    for trial, trained in ((_without_front, training), (_without_back, None)):
        try:
            plan = build_plan(groups, {group.name: trial(group.width) for group in groups})
            difference = _compared(model, groups, plan, forward, trained)
        except Exception as error:
            difference = Difference(_failure(error))
        if difference is not None:
            return difference
    return None


def _failure(error: Exception) -> str:
    return f"forward fails after a cut ({type(error).__name__}: {error})"


def _compared(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    plan: PruningPlan,
    forward: Forward,
    training: Callable[[], None] | None,
) -> Difference | None:
    """How ``model`` cut by ``plan`` differs from itself with the same channels zeroed.

    Layers that use statistics of channels use those of the channels that are kept in both.
    """
    kept = {(cut.layer, cut.side): cut.kept for cut in plan}
    norms = dict.fromkeys(norm for group in groups for norm in group.norms)
    consumers = tuple(dict.fromkeys(side.layer for group in groups for side in group.consumers))
    producers = tuple(dict.fromkeys(side.layer for group in groups for side in group.producers))
    with (
        over_kept(model, norms, plan),
        _changed(model, producers, _spoiler(kept), inputs=False),
        _changed(model, consumers, _zeroer(kept), inputs=True),
        _recorded(model, consumers, kept) as expected,
    ):
        whole_outputs = output_tensors(forward())
    with reversible_cut(model, plan, keep=False):
        with _judged(model, expected) as verdicts:
            try:
                outputs = output_tensors(forward())
            except Exception as error:
                return Difference(_failure(error), _doubtful(consumers, verdicts))
        doubtful = _doubtful(consumers, verdicts)
        if doubtful:
            layer = doubtful[0]
            if layer in verdicts:
                reason = f"{layer!r} does not compute the same from the channels that are kept"
            else:
                reason = f"forward does not call {layer!r} after a cut"
            return Difference(reason, doubtful)
        if training is not None:
            training()
    if [output.shape for output in outputs] != [output.shape for output in whole_outputs]:
        return Difference("a cut changes the shape of the network's output")
    if not all(_close(a, b) for a, b in zip(whole_outputs, outputs, strict=True)):
        return Difference("the network's output is not the same from the channels that are kept")
    return None


def _doubtful(consumers: Sequence[str], verdicts: Mapping[str, bool]) -> tuple[str, ...]:
    """The layers that make something else, in order of execution, and those that were not called."""
    wrong = [layer for layer, right in verdicts.items() if not right]
    return (*wrong, *(layer for layer in consumers if layer not in verdicts))


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
    if expected.dtype in (torch.float32, torch.float64) and expected.numel():
        # In one pass each and without wide copies, as long as there is nothing but finite numbers.
        gap, scale = _largest(expected - found), _largest(expected)
        if gap < torch.inf and scale < torch.inf:
            return gap <= tolerance * max(scale, 1e-12)
    expected, found = wide(expected), wide(found)
    finite = expected.isfinite()  # outputs may be masked with infinities
    if not torch.equal(finite, found.isfinite()):
        return False
    expected, found = expected[finite], found[finite]
    if expected.numel() == 0:
        return True
    return _largest(expected - found) <= tolerance * max(_largest(expected), 1e-12)


def _largest(tensor: Tensor) -> float:
    """The largest absolute value."""
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))


Change = Callable[[str, nn.Module, Tensor], Tensor]


def _zeroer(kept: Mapping[tuple[str, Side], Sequence[int]]) -> Change:
    """Zeroes what the plan drops where a consumer reads it."""

    def zero(layer: str, module: nn.Module, tensor: Tensor) -> Tensor:
        dim = channel_dim(module)
        dropped = _dropped(kept.get((layer, "in")), tensor, dim)
        return tensor.index_fill(dim, dropped, 0.0)

    return zero


def _spoiler(kept: Mapping[tuple[str, Side], Sequence[int]]) -> Change:
    """Puts large noise in place of what the plan drops where a producer makes it."""

    def spoil(layer: str, module: nn.Module, tensor: Tensor) -> Tensor:
        dim = channel_dim(module)
        dropped = _dropped(kept.get((layer, "out")), tensor, dim)
        shape = list(tensor.shape)
        shape[dim] = len(dropped)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tensor)
        return tensor.index_copy(dim, dropped, SPOIL * _largest(tensor) * noise)

    return spoil


def _dropped(kept: Sequence[int] | None, tensor: Tensor, dim: int) -> Tensor:
    """The positions that a plan drops."""
    mask = torch.ones(tensor.shape[dim], dtype=torch.bool)
    mask[list(range(len(mask)) if kept is None else kept)] = False
    return mask.nonzero().flatten().to(tensor.device)


@contextmanager
def _changed(
    model: nn.Module, layers: Collection[str], change: Change, *, inputs: bool
) -> Iterator[None]:
    """Let layers read, or make, other values than they would."""

    def before(layer: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            changed = change(layer, module, args[0] if args else kwargs["input"])
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "input": changed})

        return hook

    def after(layer: str) -> Any:
        return lambda module, _arguments, output: change(layer, module, output)

    handles = []
    for layer in layers:
        module = model.get_submodule(layer)
        handles.append(
            module.register_forward_pre_hook(before(layer), with_kwargs=True)
            if inputs
            else module.register_forward_hook(after(layer))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded(
    model: nn.Module, layers: Collection[str], kept: Mapping[tuple[str, Side], Sequence[int]]
) -> Iterator[Mapping[str, Tensor]]:
    """What ``layers`` make in the forward pass of the body, of the channels that they still make.

    Copies, since forward may go on in place.
    """
    outputs: dict[str, Tensor] = {}

    def record(layer: str, module: nn.Module, output: Tensor) -> Tensor:
        rows = kept.get((layer, "out"))
        if rows is None:
            outputs[layer] = output.detach().clone()
        else:
            places = torch.tensor(rows, device=output.device)
            outputs[layer] = output.detach().index_select(channel_dim(module), places)
        return output

    with _changed(model, layers, record, inputs=False):
        yield outputs


@contextmanager
def _judged(model: nn.Module, expected: Mapping[str, Tensor]) -> Iterator[Mapping[str, bool]]:
    """Whether layers make what is expected in the forward pass of the body, in order of execution.

    Those after a wrong one are handed what was expected, and judged by what they do themselves.
    """
    verdicts: dict[str, bool] = {}

    def judge(layer: str, _module: nn.Module, output: Tensor) -> Tensor:
        wanted = expected[layer]
        alike = wanted.shape == output.shape
        verdicts[layer] = alike and _close(wanted, output)
        return wanted.clone() if alike and not verdicts[layer] else output

    with _changed(model, tuple(expected), judge, inputs=False):
        yield verdicts
