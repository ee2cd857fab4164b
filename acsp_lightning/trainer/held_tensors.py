"""Tensors that callbacks or the module hold for parameters: averages that are no modules."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from acsp_lightning.structure.layer_cut import slice_tensor
from acsp_lightning.structure.surgery import SlicedParameter
from acsp_lightning.trainer.holders import held_containers, named_holders


@dataclass(frozen=True, slots=True, eq=False)
class HeldTensor:
    """Where somebody holds a tensor for a parameter or a buffer.

    Attributes:
        name: of the place, such as "Averaging.shadow[3]": another for each, and the same after a resume.
        container: a list or dict.
        key: of the tensor in it.
        parameter: the parameter or buffer that the tensor stands for.
    """

    name: str
    container: Any
    key: Any
    parameter: Tensor


def held_tensors(trainer: pl.Trainer) -> list[HeldTensor]:
    """Where callbacks or the module hold a tensor for a parameter: in dicts by name, and in lists.

    Looked at are the attributes of callbacks and of the LightningModule, and one level below them those
    of objects (``torch_ema``'s averages); and the attributes of submodules. A dict counts if all of its
    keys are names of parameters or buffers, of the module or of a child, and a list if it is as long as
    the parameters of one of these and has their shapes.
    """
    live = trainer.lightning_module
    parts = [part for part in (live, *live.children()) if next(part.parameters(), None) is not None]
    # A state dict has the tensors of a module with two names under both.
    roots = [
        (
            dict(part.named_parameters(remove_duplicate=False)),
            dict(part.named_buffers(remove_duplicate=False)),
        )
        for part in parts
    ]
    return [
        HeldTensor(f"{name}.{place}[{key}]", container, key, parameter)
        for name, holder in _holders(trainer)
        for place, container in held_containers(holder)
        for key, parameter in _stood_for(container, roots)
    ]


def _holders(trainer: pl.Trainer) -> Iterator[tuple[str, object]]:
    """The LightningModule, its submodules, and callbacks, with names."""
    for name, holder in named_holders(trainer).items():
        yield name, holder
        if isinstance(holder, nn.Module):
            yield from ((f"{name}.{inner}", part) for inner, part in holder.named_modules() if inner)


def _stood_for(
    container: Any, roots: Iterable[tuple[dict[str, nn.Parameter], dict[str, Tensor]]]
) -> list[tuple[Any, Tensor]]:
    """Keys of a list or dict, with the parameters and buffers for which there are tensors in it."""
    for parameters, buffers in roots:
        pairs: list[tuple[Any, Tensor | None]]
        if isinstance(container, MutableMapping):
            root = {**parameters, **buffers}
            pairs = [(key, root.get(key)) for key in container if isinstance(key, str)]
            whole = bool(pairs) and len(pairs) == len(container)
        else:
            pairs = list(enumerate(dict.fromkeys(parameters.values())))
            whole = len(container) == len(pairs)
        if whole and all(_stands_for(container[key], parameter) for key, parameter in pairs):
            return [(key, parameter) for key, parameter in pairs if parameter is not None]
    return []


def _stands_for(value: Any, parameter: Tensor | None) -> bool:
    return (
        isinstance(value, Tensor)
        and parameter is not None
        and value is not parameter
        and value.shape == parameter.shape
    )


def slice_held(
    places: Iterable[HeldTensor],
    sliced: Iterable[SlicedParameter],
    corrections: Mapping[int, Tensor],
    buffers: Mapping[int, Sequence[tuple[int, Tensor]]],
) -> None:
    """Cut the tensors that stand for parameters and buffers, as these were cut.

    Args:
        places: from :func:`held_tensors`, asked before the cut.
        sliced: what the cut made smaller.
        corrections: what recovery added to a parameter, by its identity.
        buffers: dimension and kept indices of the cuts of a buffer, by its identity before them.
    """
    by_parameter = {id(entry.parameter): entry for entry in sliced}
    for place in places:
        container, key, parameter = place.container, place.key, place.parameter
        for dim, kept in buffers.get(id(parameter), ()):
            container[key] = slice_tensor(container[key], dim, kept)
        entry = by_parameter.get(id(parameter))
        if entry is not None:
            container[key] = entry.slice(container[key])
        correction = corrections.get(id(parameter))
        if correction is not None and container[key].is_floating_point():
            held = container[key]
            with torch.no_grad():  # another tensor: it may be a view of the parameter itself
                corrected = held + correction.to(held)
            container[key] = corrected.requires_grad_(held.requires_grad)
