"""Norms over the channels that stay, in a network that still has all of its channels."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.layers import channel_dim, is_producer
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.surgery import reversible_cut


@contextmanager
def over_kept(model: nn.Module, norms: Iterable[Norm], plan: PruningPlan) -> Iterator[None]:
    """Let layers use the statistics of the channels that a plan keeps, in the forward pass of the body.

    At the other channels they give what they would; nobody should read it.

    Args:
        model: the whole network.
        norms: layers that use statistics.
        plan: what is kept; norms that it does not cut stay as they are.
    """
    handles = []
    for norm in norms:
        own = _alone(model, plan, norm.layer)
        if own:
            module = model.get_submodule(norm.layer)
            handles.append(module.register_forward_hook(_hook(norm, own), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _alone(model: nn.Module, plan: PruningPlan, layer: str) -> PruningPlan:
    """The cuts of a layer, and of those inside it, by their names in it; none if it stays whole."""
    cuts = sorted(plan.part(model, layer), key=lambda cut: bool(cut.layer))
    return PruningPlan(tuple(cuts) if cuts and not cuts[0].layer else ())


def _hook(norm: Norm, own: PruningPlan) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        given = args[0] if args else kwargs["input"]
        made_by = "out" if is_producer(module) else own.cuts[0].side
        read = own.kept("", "in") if is_producer(module) else own.cuts[0].kept
        if read is not None:
            given = given.index_select(norm.dim, torch.tensor(read, device=given.device))
        with reversible_cut(module, own, keep=False):
            made: Tensor = module.forward(given)
        places = own.kept("", made_by)
        if places is None:
            return made
        dim = channel_dim(module) if is_producer(module) else norm.dim
        return output.index_copy(dim, torch.tensor(places, device=output.device), made)

    return hook
