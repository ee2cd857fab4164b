"""One layer tried alone: whether it can lose inputs, and what a norm makes of the channels that stay.

A norm is told from other layers by what it does: without some channels it gives what it gives with
values in their place that leave its statistics, those of the other channels, as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.layers import channel_dim, is_consumer, normalises_all, refusal, side_width
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.structure.restoring import state_restored
from acsp_lightning.structure.sides import Side, parameter_side
from acsp_lightning.structure.surgery import reversible_cut
from acsp_lightning.structure.unfold import has_rows
from acsp_lightning.structure.weights import group_count

# Largest deviation, as a share of the largest value: standardised filters change by more.
TOLERANCE = 1e-2

# Of fewer channels no two can go and two stay; one value alone cannot keep a mean and a spread.
FEWEST = 4


def can_lose_inputs(module: nn.Module, given: Tensor) -> bool:
    """Whether a layer gives the same without some inputs of every group as with zeros in their place.

    Args:
        module: the layer; left as it was.
        given: what it is given.
    """
    if not is_consumer(module):
        return True  # depthwise
    width, dim = side_width(module, "in"), channel_dim(module)
    share = width // group_count(module)
    stays = torch.arange(width, device=given.device) % share >= -(-share // 3)
    kept, gone = stays.nonzero().flatten(), (~stays).nonzero().flatten()
    if not len(kept):
        return True

    def compared() -> bool:
        expected = module.forward(given.index_fill(dim, gone, 0.0))
        return agrees(expected, _without(module, [("", "in")], given, dim, kept))

    return _tried(module, compared)


def standardises_filters(module: nn.Module, given: Tensor) -> bool:
    """Whether a layer subtracts the mean of every filter, or divides by its spread, and does no more.

    Args:
        module: a convolution or a linear layer; left as it was. Of those in groups the answer is no.
        given: what it is given.
    """
    width, dim = side_width(module, "in"), channel_dim(module)
    if width < FEWEST or not has_rows(module):
        return False
    kept, gone = _parted(width, given.device)
    sides = [("", "in")]
    weight = module.get_parameter("weight")
    taps = weight.detach().reshape(*weight.shape[:2], -1)
    rest = _of_the_same_moments(taps[:, kept].flatten(1), len(gone) * taps.shape[2], 1)
    filled = taps.clone()
    filled[:, gone] = rest.view(len(taps), len(gone), -1)

    def compared() -> bool:
        with replaced(weight, filled.view(weight.shape)):
            expected = module.forward(given.index_fill(dim, gone, 0.0))
        return agrees(expected, _without(module, sides, given, dim, kept))

    return _tried(module, compared)


def normalises(module: nn.Module, given: Tensor, dim: int) -> bool:
    """Whether a layer gives every channel by itself, but for statistics of all of its channels.

    These are means and spreads at every position or over all of them, or the mean of the sizes of maps
    (global response normalisation).

    Args:
        module: the layer, with parameters over channels; left as it was.
        given: what it is given.
        dim: dimension of the channels.
    """
    width = given.shape[dim]
    sides = _own_sides(module, width)
    if width < FEWEST or not sides:
        return False
    kept, gone = _parted(width, given.device)

    def compared() -> bool:
        stay = given.index_select(dim, kept)
        fills = [_of_the_same_moments(stay, len(gone), dim), _of_the_same_size(stay, len(gone), dim)]
        fills.append(given.index_select(dim, gone) + 10 * given.abs().amax())
        with ExitStack() as stack:
            # What starts at zero would hide what it scales.
            for parameter in module.parameters(recurse=False):
                values = torch.linspace(0.5, 1.5, parameter.numel()).view(parameter.shape)
                stack.enter_context(replaced(parameter, values.to(parameter)))
            found = _without(module, sides, given, dim, kept)
            whole = [module.forward(given.index_copy(dim, gone, fill)) for fill in fills]
        verdicts = [agrees(made.index_select(dim, kept), found) for made in whole]
        return any(verdicts[:2]) and not verdicts[2]

    return _tried(module, compared)


def _own_sides(module: nn.Module, width: int) -> list[tuple[str, Side]]:
    """The sides of a norm: those of it and of layers inside it, or of parameters over channels."""
    if normalises_all(module):
        return [(name, "out") for name, layer in module.named_modules() if refusal(layer) is None]
    named = [(name, p) for name, p in module._parameters.items() if p is not None]
    return [
        ("", parameter_side(name, p.shape.index(width)))
        for name, p in named
        if p.numel() == width in p.shape
    ]


def _parted(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions that stay, and those that go: two at least, a third else."""
    places = torch.arange(width, device=device)
    gone = max(2, width // 3)
    return places[gone:], places[:gone]


def _of_the_same_moments(values: Tensor, count: int, dim: int) -> Tensor:
    """``count`` values along a dimension, two or more, with mean and spread of the given ones."""
    values = values.movedim(dim, -1)
    steps = torch.linspace(-1.0, 1.0, count, dtype=values.dtype, device=values.device)
    steps = steps / steps.square().mean().sqrt()
    mean, spread = values.mean(-1, keepdim=True), values.std(-1, correction=0, keepdim=True)
    return (mean + spread * steps).movedim(-1, dim)


def _of_the_same_size(maps: Tensor, count: int, dim: int) -> Tensor:
    """``count`` maps, each as large over all positions of a sample as the given ones on average."""
    others = [d for d in range(1, maps.ndim) if d != dim % maps.ndim]
    sizes = torch.linalg.vector_norm(maps, dim=others, keepdim=True) if others else maps.abs()
    first = maps.narrow(dim, 0, 1) / sizes.narrow(dim, 0, 1)
    shape = [-1] * maps.ndim
    shape[dim] = count
    return (first * sizes.mean(dim, keepdim=True)).expand(shape)


def _without(
    module: nn.Module, sides: Sequence[tuple[str, Side]], given: Tensor, dim: int, kept: Tensor
) -> Tensor:
    """What a module gives that has lost channels, on the others."""
    stay = tuple(kept.tolist())
    width = given.shape[dim]
    plan = PruningPlan(tuple(SideCut(*side, width, stay) for side in sides))
    with reversible_cut(module, plan, keep=False):
        found: Tensor = module.forward(given.index_select(dim, kept))
    return found


def agrees(expected: Tensor, found: Tensor) -> bool:
    """Whether what a layer gives is what was expected, up to rounding."""
    gap = (wide(expected) - wide(found)).abs().amax()
    return bool(gap <= TOLERANCE * wide(expected).abs().amax())


def _tried(module: nn.Module, compared: Callable[[], bool]) -> bool:
    """What a comparison says; no, where a forward pass fails."""
    with state_restored(module):
        try:
            return compared()
        except Exception:
            return False


@contextmanager
def replaced(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    """Give a parameter other values for the body."""
    before = parameter.data
    with torch.inference_mode(False):
        parameter.data = values
    try:
        yield
    finally:
        parameter.data = before
