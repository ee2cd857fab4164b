"""Norms over fewer channels, scaled so that every channel keeps its size.

Statistics of fewer channels are others: a LayerNorm divides by another spread, a standardised filter has
as large weights for fewer inputs. The scale of such a layer, and its shift if it has one, are corrected
so that, on samples, every output has the mean and the spread that it had in the uncut network.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.layers import STANDARD, channel_dim, is_producer, normalises_all
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
    """What layers give in the forward pass of the body, of those that have a scale for every channel."""
    found: dict[str, NormTarget] = {}

    def note(norm: Norm) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            dim = channel_dim(module) if is_producer(module) else norm.dim
            names = _affine_parameters(module, args[0] if args else kwargs["input"], dim)
            if names is not None:
                found[norm.layer] = NormTarget(dim, *_moments(output, dim), *names)

        return hook

    with ExitStack() as stack:
        for norm in norms:
            module = model.get_submodule(norm.layer)
            stack.callback(module.register_forward_hook(note(norm), with_kwargs=True).remove)
        yield found


@contextmanager
def rescaled(model: nn.Module, plan: PruningPlan, targets: Mapping[str, NormTarget]) -> Iterator[None]:
    """Correct layers at the moment they run in the forward pass of the body.

    Args:
        model: the cut network; parameters change in place.
        plan: the cut; layers that it does not touch stay as they are.
        targets: what layers gave before it.
    """

    def correct(layer: str, target: NormTarget) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
            kept = _kept(plan, layer, target.scale)
            stay = slice(None) if kept is None else torch.tensor(kept, device=output.device)
            mean, spread = _moments(output, target.dim)
            factor, shift = _correction(mean, spread, target.mean[stay], target.spread[stay], target)
            scale = module.get_parameter(target.scale)
            scale.mul_(factor.view_as(scale))
            if target.shift is not None:
                bias = module.get_parameter(target.shift)
                bias.mul_(factor.view_as(bias)).add_(shift.view_as(bias))
            shape = [1] * output.ndim
            shape[target.dim] = -1
            return (output * factor.view(shape) + shift.view(shape)).to(output.dtype)

        return hook

    with ExitStack() as stack:
        for module, layer in _corrected(model, plan):
            if layer in targets:
                hook = correct(layer, targets[layer])
                stack.callback(module.register_forward_hook(hook).remove)
        yield


def fitted_layers(model: nn.Module, plan: PruningPlan) -> list[nn.Module]:
    """The layers whose parameters recovery may change: those that lost inputs, and norms."""
    return [module for module, _ in _corrected(model, plan)]


def _corrected(model: nn.Module, plan: PruningPlan) -> list[tuple[nn.Module, str]]:
    """Layers that lost inputs or parameters of their own, and norms of all channels, with names."""
    modules = {cut.layer: model.get_submodule(cut.layer) for cut in plan}
    lost = {cut.layer for cut in plan if cut.side == "in" or parsed(cut.side)[0] == "parameter"}
    return [(m, layer) for layer, m in modules.items() if layer in lost or normalises_all(m)]


def _kept(plan: PruningPlan, layer: str, scale: str) -> tuple[int, ...] | None:
    """The channels of a layer's output that stay: those of its scale where it has no side of its own."""
    for cut in plan:
        if cut.layer == layer and (cut.side == "out" or parsed(cut.side)[:2] == ("parameter", scale)):
            return cut.kept
    return None


def _moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel."""
    values = output.detach().movedim(dim, 0).flatten(1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    spread, mean = torch.std_mean(values, 1, correction=0)
    return mean, spread


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
