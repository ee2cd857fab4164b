"""Loading a pruned network into the class it came from: the shapes in the file say what was cut."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.structure.layers import Side, refusal, side_layout
from acsp_lightning.structure.surgery import parameter_like

M = TypeVar("M", bound=nn.Module)
SIDES: tuple[Side, Side] = ("out", "in")


def load_pruned(model: M, path: str | PathLike[str]) -> M:
    """Give ``model`` the structure and the weights of a checkpoint, pruned or not.

    Needs no Trainer, no tracing and no example input. Layers shrink or grow to the shapes in the
    file.

    Args:
        model: a fresh instance of the class that was saved; changed in place.
        path: a Lightning checkpoint (weights under ``state_dict``), or what ``torch.save`` wrote of a
            state dict. Read with ``weights_only=True``, onto the CPU.

    Returns:
        ``model``.

    Raises:
        ValueError: if the file holds no state dict, or one of another architecture: names the first
            layer that does not fit. The model is as it was then.
    """
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds neither a Lightning checkpoint nor a state dict of tensors; it holds a "
            f"{type(content).__name__}."
        )
    restore_structure(model, state)
    model.load_state_dict(state)
    return model


def restore_structure(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize the layers of ``model``, in place, to the shapes in ``state``; weights are not copied.

    Resized parameters are new objects with undefined values that keep dtype, device,
    ``requires_grad`` and the attributes set on them: load ``state`` next, and build optimizers after.

    Args:
        model: a network of the class that ``state`` was taken from.
        state: what its ``state_dict()`` gave, before or after any number of cuts.

    Raises:
        ValueError: if names differ, or a shape differs in a way that no cut explains: names the first
            layer that does not fit, with both shapes. The model is untouched then.
    """
    own = model.state_dict()
    for kind, names in (
        ("the file lacks", own.keys() - state.keys()),
        ("only the file has", state.keys() - own.keys()),
    ):
        if names:
            raise ValueError(
                f"The file is of another architecture than {type(model).__name__}: {kind} "
                f"{min(names)!r}."
            )
    resize_layers(model, state)


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
    changed = {name for name, (own, found) in shapes.items() if own != found}
    resized = {layer: model.get_submodule(layer) for layer in _owners(changed)}
    for layer, module in resized.items():
        _check_resizable(layer, module, shapes)
    for layer, module in resized.items():
        names = {
            name.rpartition(".")[2]: found
            for name, (_, found) in shapes.items()
            if _owner(name) == layer
        }
        _resize(module, names)


def resize_on_load(module: nn.Module) -> RemovableHandle:
    """Let every later ``load_state_dict`` of ``module`` resize its layers first, as the file has them.

    The hook also acts where ``module`` is a part of a larger module, and copies of the module have it.
    """

    def hook(owner: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
        resize_layers(owner, state, prefix)

    handle: RemovableHandle = module.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
    return handle


class PrunedCheckpointMixin:
    """Lets a LightningModule load its own pruned checkpoints, also by ``load_from_checkpoint``.

    Put it first among the bases: ``class MyModule(PrunedCheckpointMixin, LightningModule)``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self, nn.Module), "the mixin stands before a LightningModule"
        resize_on_load(self)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _owners(names: set[str]) -> list[str]:
    return sorted({_owner(name) for name in names})


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


def _resize(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    sizes: dict[str, int] = {}
    for side in SIDES:
        layout = side_layout(module, side)
        width = next(shapes[tensor][dim] for tensor, dim in layout.tensors if tensor in shapes)
        sizes.update(dict.fromkeys(layout.sizes, width))
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old.shape == shape:
            continue
        new = old.detach().new_empty(shape)
        if isinstance(old, nn.Parameter):
            new = parameter_like(old, new)
        setattr(module, name, new)
    vars(module).update(sizes)
