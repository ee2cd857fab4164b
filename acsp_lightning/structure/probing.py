"""One layer tried alone: whether it can lose inputs, whatever its own forward does."""

import torch
from torch import Tensor, nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.forward import state_restored
from acsp_lightning.structure.layers import channel_dim, is_consumer, side_width
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.structure.surgery import reversible_cut
from acsp_lightning.structure.weights import group_count

# Largest deviation, as a share of the largest value: standardised filters change by more.
TOLERANCE = 1e-2


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer computes something else than the layer of torch that it is derived from."""
    return not type(module).forward.__module__.startswith("torch.nn.")


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
    plan = PruningPlan((SideCut("", "in", width, tuple(kept.tolist())),))
    with state_restored(module):
        try:
            expected = module.forward(given.index_fill(dim, gone, 0.0))
            with reversible_cut(module, plan, keep=False):
                found = module.forward(given.index_select(dim, kept))
            gap = (wide(expected) - wide(found)).abs().amax()
            return bool(gap <= TOLERANCE * wide(expected).abs().amax())
        except Exception:
            return False
