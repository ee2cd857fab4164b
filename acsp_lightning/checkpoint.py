"""Loading a pruned network into the class it came from: the shapes in the file say what was cut."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.files import verify_checksums
from acsp_lightning.structure.resizing import resize_layers

M = TypeVar("M", bound=nn.Module)


def load_pruned(model: M, path: str | PathLike[str]) -> M:
    """Give ``model`` the structure and the weights of a checkpoint, pruned or not.

    Needs no Trainer, no tracing and no example input. Layers shrink or grow to the shapes in the
    file. A LightningModule with ``strict_loading = False`` may have other names than the file.

    Args:
        model: a fresh instance of the class that was saved; changed in place.
        path: a Lightning checkpoint (weights under ``state_dict``), what ``torch.save`` wrote of a
            state dict (both read with ``weights_only=True``), or a ``.safetensors`` file. Read onto
            the CPU.

    Returns:
        ``model``.

    Raises:
        ValueError: if the file is damaged, holds no state dict, or one of another architecture: names
            the first layer that does not fit. The model is as it was then.
        ImportError: if a ``.safetensors`` file is to be read without that package.
    """
    state = _read_weights(Path(path))
    strict = bool(getattr(model, "strict_loading", True))  # Lightning's word for partial state dicts
    if strict:
        restore_structure(model, state)
    else:
        resize_layers(model, state)
    model.load_state_dict(state, strict=strict)
    return model


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds neither a Lightning checkpoint nor a state dict of tensors; it holds a "
            f"{type(content).__name__}."
        )
    return state


def _read_torch(path: Path) -> Any:
    verify_checksums(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read with weights_only=True ({type(error).__name__}: {error}). If it is "
            "no checkpoint, give one; if it holds other objects than tensors and plain data, save the "
            "weights alone: torch.save(model.state_dict(), path)."
        ) from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs the package safetensors: pip install safetensors."
        ) from error
    content = path.read_bytes()
    try:
        return load(content)
    except Exception as error:
        raise ValueError(
            f"{path} is no safetensors file, or is damaged or incomplete ({error}). Use another copy."
        ) from error


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
    for kind, names, others in (("the file lacks", own, state), ("only the file has", state, own)):
        missing = next((name for name in names if name not in others), None)
        if missing is not None:
            raise ValueError(
                f"The file is of another architecture than {type(model).__name__}: {kind} {missing!r}."
            )
    resize_layers(model, state)


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
