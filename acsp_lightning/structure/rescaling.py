"""Norms over fewer channels, scaled so that every channel keeps its size.

Statistics of fewer channels are others: a LayerNorm divides by another spread, a standardised filter has
as large weights for fewer inputs. The scale of such a layer, and its shift if it has one, are corrected
so that, on samples, every output has the mean and the spread that it had in the uncut network.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.pooled import PooledMoments
from acsp_lightning.structure.fitted import cut_layers
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.layers import STANDARD, channel_dim, is_producer
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.probing import agrees, replaced
from acsp_lightning.structure.sides import parsed

# Channels of less than this share of the largest spread, in either network, keep their scale.
LEAST_SPREAD = 1e-3
SAMPLES = 2  # tell whether a layer has a scale


@dataclass(frozen=True, slots=True)
class NormTarget:
    """What a layer that uses statistics of its channels gave in the uncut network.

    Attributes:
        dim: dimension of the channels in it.
        mean: over samples and positions, (C,).
        spread: standard deviation over them, (C,).
        scale: name of the parameter that multiplies what it gives.
        shift: name of the parameter that is added to it; None if there is none.
    """

    dim: int
    mean: Tensor
    spread: Tensor
    scale: str
    shift: str | None


@contextmanager
def noted(model: nn.Module, norms: Iterable[Norm]) -> Iterator[Mapping[str, NormTarget]]:
    """What layers give in the passes of the body, of those that have a scale for every channel.

    Filled when the body ends.
    """
    found: dict[str, NormTarget] = {}
    moments: dict[str, PooledMoments] = {}
    parameters: dict[str, tuple[int, str, str | None]] = {}

    def note(norm: Norm) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            dim = channel_dim(module) if is_producer(module) else norm.dim
            if norm.layer not in moments:
                names = _affine_parameters(module, args[0] if args else kwargs["input"], dim)
                if names is None:
                    return
                moments[norm.layer], parameters[norm.layer] = PooledMoments(), (dim, *names)
            moments[norm.layer].add(output, dim)

        return hook

    with ExitStack() as stack:
        for norm in norms:
            module = model.get_submodule(norm.layer)
            stack.callback(module.register_forward_hook(note(norm), with_kwargs=True).remove)
        yield found
    for layer, (dim, scale, shift) in parameters.items():
        pooled = moments[layer]
        found[layer] = NormTarget(dim, pooled.mean, pooled.spread, scale, shift)


Meet = Callable[[Hashable, Callable[[], None], Callable[[], None]], bool]
"""As :meth:`acsp_lightning.structure.lockstep.Lockstep.meet`."""


def alone(place: Hashable, tell: Callable[[], None], settle: Callable[[], None]) -> bool:
    """Meet nobody: there is one pass."""
    tell()
    settle()
    return True


@contextmanager
def rescaled(
    model: nn.Module, plan: PruningPlan, targets: Mapping[str, NormTarget], meet: Meet = alone
) -> Iterator[list[Hashable]]:
    """Correct layers at the moment they run in the passes of the body.

    Args:
        model: the cut network; parameters change in place.
        plan: the cut; layers that it does not touch stay as they are.
        targets: what layers gave before it.
        meet: how a pass waits for the others.

    Yields:
        The places where passes meet.
    """
    moments: dict[str, PooledMoments] = {}
    corrections: dict[str, tuple[Tensor, Tensor]] = {}

    def settle(layer: str, module: nn.Module, target: NormTarget) -> None:
        kept, pooled = _kept(plan, layer, target.scale), moments.pop(layer)
        stay = slice(None) if kept is None else torch.tensor(kept, device=pooled.mean.device)
        wanted = target.mean[stay], target.spread[stay]
        factor, shift = _correction(pooled.mean, pooled.spread, *wanted, target)
        scale = module.get_parameter(target.scale)
        scale.mul_(factor.view_as(scale))
        if target.shift is not None:
            bias = module.get_parameter(target.shift)
            bias.mul_(factor.view_as(bias)).add_(shift.view_as(bias))
        corrections[layer] = factor, shift

    def correct(layer: str, target: NormTarget) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, _arguments: object, output: Tensor) -> Tensor | None:
            def tell() -> None:
                moments.setdefault(layer, PooledMoments()).add(output, target.dim)

            if not meet(_place(layer), tell, partial(settle, layer, module, target)):
                return None
            shape = [1] * output.ndim
            shape[target.dim] = -1
            factor, shift = corrections[layer]
            return (output * factor.view(shape) + shift.view(shape)).to(output.dtype)

        return hook

    with ExitStack() as stack:
        places = []
        for layer in cut_layers(model, plan):
            if layer in targets:
                hook = correct(layer, targets[layer])
                stack.callback(model.get_submodule(layer).register_forward_hook(hook).remove)
                places.append(_place(layer))
        yield places


def _place(layer: str) -> Hashable:
    return "norm", layer


def _kept(plan: PruningPlan, layer: str, scale: str) -> tuple[int, ...] | None:
    """The channels of a layer's output that stay: those of its scale where it has no side of its own."""
    for cut in plan:
        if cut.layer == layer and (cut.side == "out" or parsed(cut.side)[:2] == ("parameter", scale)):
            return cut.kept
    return None


def _correction(
    mean: Tensor, spread: Tensor, wanted_mean: Tensor, wanted_spread: Tensor, target: NormTarget
) -> tuple[Tensor, Tensor]:
    """What outputs are multiplied by, and what is added: without a shift they keep their mean square."""
    if target.shift is None:
        spread, wanted_spread = torch.hypot(mean, spread), torch.hypot(wanted_mean, wanted_spread)
    usable = torch.minimum(spread, wanted_spread) > LEAST_SPREAD * wanted_spread.amax()
    factor = torch.where(usable, wanted_spread / torch.where(usable, spread, 1.0), 1.0)
    if target.shift is None:
        return factor, torch.zeros_like(mean)
    return factor, wanted_mean - factor * mean


def _affine_parameters(module: nn.Module, given: Tensor, dim: int) -> tuple[str, str | None] | None:
    """The parameters that multiply and shift what a layer gives; None if none multiplies it."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    few = given[:SAMPLES]
    before: Tensor = module.forward(few)
    width = before.shape[dim]
    over_channels = [name for name, parameter in own.items() if parameter.numel() == width]
    # The weight and the bias of a convolution are no scale and shift of what it normalises.
    scales = [name for name in over_channels if not (is_producer(module) and name in STANDARD)]
    for scale in scales:
        # With a shift of 0 the scale alone doubles the output as well.
        for shift in (*(name for name in over_channels if name != scale), None):
            if _are_affine(module, few, before, own, scale, shift):
                return scale, shift
    return None


def _are_affine(
    module: nn.Module,
    few: Tensor,
    before: Tensor,
    own: Mapping[str, nn.Parameter],
    scale: str,
    shift: str | None,
) -> bool:
    """Whether two parameters multiply what a layer gives, and are added to it."""
    with ExitStack() as stack:
        for name in (scale,) if shift is None else (scale, shift):
            stack.enter_context(replaced(own[name], 2 * own[name].data))
        doubled = agrees(2 * before, module.forward(few))
    if shift is None or not doubled:
        return doubled
    with replaced(own[shift], own[shift].data + 1):
        return agrees(before + 1, module.forward(few))
