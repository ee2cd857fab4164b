"""Layers resized to the shapes of a state dict."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from acsp_lightning.structure.aliases import under_first_names
from acsp_lightning.structure.layer_cut import channels_last_format
from acsp_lightning.structure.layers import is_consumer, is_grouped, norm_sizes, refusal, side_layout
from acsp_lightning.structure.records import first_size, recorded, set_sizes
from acsp_lightning.structure.sides import Side
from acsp_lightning.structure.surgery import set_data

SIDES: tuple[Side, Side] = ("out", "in")

Shapes = Mapping[str, tuple[torch.Size, torch.Size]]


def resize_layers(
    model: nn.Module, state: Mapping[str, Tensor], prefix: str = "", *, whole: bool = True
) -> None:
    """Resize the layers whose shapes differ in ``state``; names that only one side has are passed over.

    What shapes do not tell (groups, numbers that forward reads) is set from the records in ``state``.

    Args:
        model: changed in place, or not at all.
        state: entries of the model's state dict, each name behind ``prefix``.
        prefix: what the names in ``state`` begin with.
        whole: whether the model is a network whose outputs are classes; a part of one may gain and lose
            outputs that nothing in it reads.

    Raises:
        ValueError: if a shape differs in a way that no cut explains.
    """
    behind = {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
    }
    own_state = under_first_names(model, behind)
    shapes = {
        name: (tensor.shape, own_state[name].shape)
        for name, tensor in under_first_names(model, model.state_dict()).items()
        if name in own_state
    }
    layers = dict.fromkeys(_owner(name) for name, (own, found) in shapes.items() if own != found)
    resized = {layer: model.get_submodule(layer) for layer in layers}
    sizes: dict[str, dict[str, int]] = {}
    for layer, module in resized.items():
        _check_resizable(layer, module, shapes)
        sizes[layer] = _sizes(layer, module, shapes, own_state)
    if whole:
        _check_readers(model, resized, sizes)
    set_sizes(model, own_state)
    for name, (own, found) in shapes.items():
        if own != found:
            _resize(model.get_submodule(_owner(name)), name.rpartition(".")[2], found)
    for layer, module in resized.items():
        widths = list(sizes[layer].values())
        vars(module).update(sizes[layer] | (norm_sizes(module, widths[0]) if widths else {}))


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _check_resizable(layer: str, module: nn.Module, shapes: Shapes) -> None:
    reason = refusal(module)
    free: dict[str, set[int]] = {}
    if reason is None:
        for side in SIDES:
            for tensor, dim in side_layout(module, side).tensors:
                free.setdefault(tensor, set()).add(dim)
    for name, (own, found) in shapes.items():
        if _owner(name) != layer:
            continue
        # Parameters over channels may belong to any module but those of torch.
        bare = reason is not None and not type(module).__module__.startswith("torch.nn.")
        dims = free.get(name.rpartition(".")[2], set(range(len(own))) if bare else set())
        fits = len(found) == len(own) and all(
            a == b or dim in dims for dim, (a, b) in enumerate(zip(found, own, strict=False))
        )
        if not fits:
            raise ValueError(
                f"Layer {layer!r} does not fit: {name!r} has shape {tuple(found)} in the file and "
                f"{tuple(own)} in the model, which no cut explains"
                + (f" ({reason})." if reason else ".")
            )


def _sizes(layer: str, module: nn.Module, shapes: Shapes, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The attributes of a layer that count its channels, as the shapes in ``state`` have them."""
    if refusal(module) is not None:
        return {}
    sizes: dict[str, int] = {}
    for side in SIDES:
        layout = side_layout(module, side)
        found = [shapes.get(f"{layer}.{tensor}".lstrip(".")) for tensor, _ in layout.tensors]
        widths = [shape[1][dim] for shape, (_, dim) in zip(found, layout.tensors, strict=True) if shape]
        if widths:  # a partial state dict may lack the weight
            sizes.update(dict.fromkeys(layout.sizes, widths[0]))
    if is_grouped(module) and sizes:
        groups = recorded(state, layer, "groups") or first_size(module, "groups")
        shared = "out_channels" if isinstance(module, _ConvTransposeNd) else "in_channels"
        sizes |= {shared: sizes[shared] * groups, "groups": groups}
        if sizes["out_channels"] % groups or sizes["in_channels"] % groups:
            raise ValueError(
                f"Layer {layer!r} does not fit: {sizes['in_channels']} inputs and "
                f"{sizes['out_channels']} outputs make no {groups} groups, which no cut explains."
            )
    return sizes


def _check_readers(
    model: nn.Module, resized: Mapping[str, nn.Module], sizes: Mapping[str, Mapping[str, int]]
) -> None:
    """A cut of outputs is a cut of somebody's inputs; else the file has another number of classes.

    The layer that was registered last is the output layer in all likelihood, which is never cut. Its
    readers would have to fit to the channel; for other layers some that changed as much will do, since
    they may read concatenations or parts.
    """

    def counts(layer: str, module: nn.Module, side: Side) -> tuple[int, int]:
        attribute = side_layout(module, side).sizes[0]
        own = int(getattr(module, attribute))
        return own, sizes[layer].get(attribute, own)

    consumers = {layer: module for layer, module in resized.items() if is_consumer(module)}
    read = {layer: counts(layer, module, "in") for layer, module in consumers.items()}
    last = [name for name, module in model.named_modules() if is_consumer(module)][-1:]
    for layer, module in consumers.items():
        own, found = counts(layer, module, "out")
        others = [reads for reader, reads in read.items() if reader != layer]
        exact = any(_reads_alone(own, found, *reads) for reads in others)
        more = found - own
        alike = [b - a for a, b in others if more * (b - a) > 0]
        # A pixel shuffle makes one input of several outputs.
        shared = abs(sum(alike)) >= abs(more) or any(more % change == 0 for change in alike)
        is_output = [layer] == last and isinstance(module, nn.Linear)
        if more and not exact and (is_output or not shared):
            raise ValueError(
                f"Layer {layer!r} does not fit: it has {found} outputs in the file and {own} in the "
                "model, and no layer reads them. The output layer is never cut, so this is another "
                f"number of classes: build the model with {found}."
            )


def _reads_alone(own: int, found: int, own_read: int, found_read: int) -> bool:
    """Whether a layer may read these outputs and no others, also flattened or unfolded."""
    whole = own_read % own == 0 or own % own_read == 0
    return whole and own_read * found == found_read * own and own_read != found_read


def _resize(module: nn.Module, name: str, shape: torch.Size) -> None:
    old = getattr(module, name)
    with torch.inference_mode(False):  # under which no parameter could be trained
        new = _empty_like(old, shape)
    if isinstance(old, nn.Parameter):
        set_data(old, new)
    else:
        setattr(module, name, new)


def _empty_like(old: Tensor, shape: torch.Size) -> Tensor:
    """An undefined tensor of another shape in the memory format of ``old``."""
    layout = channels_last_format(old) or torch.contiguous_format
    return old.detach().new_empty(shape).to(memory_format=layout)
