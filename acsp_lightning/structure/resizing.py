"""Layers resized to the shapes of a state dict."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from acsp_lightning.structure.layers import Side, is_consumer, refusal, side_layout
from acsp_lightning.structure.surgery import set_data

SIDES: tuple[Side, Side] = ("out", "in")


def resize_layers(model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Resize the layers whose shapes differ in ``state``; names that only one side has are passed over.

    Args:
        model: changed in place, or not at all.
        state: entries of the model's state dict, each name behind ``prefix``.
        prefix: what the names in ``state`` begin with.

    Raises:
        ValueError: if a shape differs in a way that no cut explains.
    """
    shapes = {
        name: (tensor.shape, state[prefix + name].shape)
        for name, tensor in model.state_dict().items()
        if prefix + name in state
    }
    layers = dict.fromkeys(_owner(name) for name, (own, found) in shapes.items() if own != found)
    resized = {layer: model.get_submodule(layer) for layer in layers}
    for layer, module in resized.items():
        _check_resizable(layer, module, shapes)
    _check_readers(model, resized, shapes)
    for layer, module in resized.items():
        names = {
            name.rpartition(".")[2]: found
            for name, (_, found) in shapes.items()
            if _owner(name) == layer
        }
        _resize(module, names)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _check_resizable(
    layer: str, module: nn.Module, shapes: Mapping[str, tuple[torch.Size, torch.Size]]
) -> None:
    reason = refusal(module)
    free: dict[str, set[int]] = {}
    if reason is None:
        for side in SIDES:
            for tensor, dim in side_layout(module, side).tensors:
                free.setdefault(tensor, set()).add(dim)
    for name, (own, found) in shapes.items():
        if _owner(name) != layer:
            continue
        dims = free.get(name.rpartition(".")[2], set())
        fits = len(found) == len(own) and all(
            a == b or dim in dims for dim, (a, b) in enumerate(zip(found, own, strict=False))
        )
        if not fits:
            raise ValueError(
                f"Layer {layer!r} does not fit: {name!r} has shape {tuple(found)} in the file and "
                f"{tuple(own)} in the model, which no cut explains"
                + (f" ({reason})." if reason else ".")
            )


def _check_readers(
    model: nn.Module,
    resized: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[torch.Size, torch.Size]],
) -> None:
    """A cut of outputs is a cut of somebody's inputs; else the file has another number of classes.

    The layer that was registered last is the output layer in all likelihood, which is never cut. Its
    readers would have to fit to the channel; for other layers one that changed as much will do, since it
    may read a concatenation.
    """

    def sizes(layer: str, module: nn.Module, side: Side) -> tuple[int, int]:
        ((tensor, dim), *_) = side_layout(module, side).tensors
        own, found = shapes.get(f"{layer}.{tensor}".lstrip("."), ((0, 0), (0, 0)))
        return own[dim], found[dim]

    consumers = {layer: module for layer, module in resized.items() if is_consumer(module)}
    read = {layer: sizes(layer, module, "in") for layer, module in consumers.items()}
    last = [name for name, module in model.named_modules() if is_consumer(module)][-1:]
    for layer, module in consumers.items():
        own, found = sizes(layer, module, "out")
        others = [reads for reader, reads in read.items() if reader != layer]
        exact = any(_reads_alone(own, found, *reads) for reads in others)
        more = found - own
        shared = any(more * (b - a) > 0 and abs(b - a) >= abs(more) for a, b in others)
        is_output = [layer] == last and isinstance(module, nn.Linear)
        if more and not exact and (is_output or not shared):
            raise ValueError(
                f"Layer {layer!r} does not fit: it has {found} outputs in the file and {own} in the "
                "model, and no layer reads them. The output layer is never cut, so this is another "
                f"number of classes: build the model with {found}."
            )


def _reads_alone(own: int, found: int, own_read: int, found_read: int) -> bool:
    """Whether a layer may read these outputs and no others, also flattened or unfolded."""
    if 0 in (own, found, own_read, found_read):
        return False
    whole = own_read % own == 0 or own % own_read == 0
    return whole and own_read * found == found_read * own and own_read != found_read


def _resize(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    sizes: dict[str, int] = {}
    for side in SIDES:
        layout = side_layout(module, side)
        widths = [shapes[tensor][dim] for tensor, dim in layout.tensors if tensor in shapes]
        if widths:  # a partial state dict may lack the weight
            sizes.update(dict.fromkeys(layout.sizes, widths[0]))
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old.shape == shape:
            continue
        new = _empty_like(old, shape)
        if isinstance(old, nn.Parameter):
            set_data(old, new)
        else:
            setattr(module, name, new)
    vars(module).update(sizes)


def _empty_like(old: Tensor, shape: torch.Size) -> Tensor:
    """An undefined tensor of another shape in the memory format of ``old``."""
    new = old.detach().new_empty(shape)
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        # Strides, since a 1 x 1 kernel calls itself contiguous in both formats.
        if (
            old.ndim == ndim
            and old.stride() == torch.empty(old.shape, memory_format=layout, device="meta").stride()
        ):
            return new.to(memory_format=layout)
    return new
