"""Loading a pruned network into the class it came from: the shapes in the file say what was cut."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.files import verify_checksums
from acsp_lightning.structure.records import is_record, unknown_records
from acsp_lightning.structure.resizing import resize_layers
from acsp_lightning.structure.state_names import bare, behind, common_prefixes, matching_names

M = TypeVar("M", bound=nn.Module)


def load_pruned(model: M, path: str | PathLike[str], prefix: str = "") -> M:
    """Give ``model`` the structure and the weights of a checkpoint, pruned or not.

    Needs no Trainer, no tracing and no example input. Layers shrink or grow to the shapes in the file;
    numbers that shapes do not tell (groups of a convolution, ``self.width`` that forward reads) are set
    from entries ``acsp_size_...``, which a cut leaves in the state dict of the modules concerned.
    Whether the network was compiled or wrapped (``_orig_mod.``, ``module.``) when it was saved, or is
    now, makes no difference. A LightningModule with ``strict_loading = False`` may have other names
    than the file.

    Args:
        model: a fresh instance of the class that was saved, with its network built; changed in place.
        path: a Lightning checkpoint (weights under ``state_dict``), what ``torch.save`` wrote of a
            state dict (both read with ``weights_only=True``), or a ``.safetensors`` file. Read onto
            the CPU.
        prefix: take the names behind it, and no others: ``"network."`` takes what a LightningModule
            holds as ``self.network``, for a network of its own.

    Returns:
        ``model``, in the train or eval mode that it was in: a fresh instance is in train mode, so call
        ``eval()`` before predicting.

    Raises:
        ValueError: if the file is damaged, holds no state dict, nothing behind ``prefix``, or one of
            another architecture: names the first layer that does not fit. The model is as it was then.
        ImportError: if a ``.safetensors`` file is to be read without that package.
    """
    state = _read_weights(Path(path))
    if prefix:
        state = _behind(state, prefix if prefix.endswith(".") else f"{prefix}.", path)
    return load_weights(model, state)


def load_weights(model: M, state: Mapping[str, Tensor]) -> M:
    """As :func:`load_pruned`, from a state dict instead of a file."""
    own = model.state_dict()
    if not own:
        raise ValueError(_unbuilt(model))
    names = matching_names(state, own)
    state = {names[name]: tensor for name, tensor in state.items()}
    strict = bool(getattr(model, "strict_loading", True))  # Lightning's word for partial state dicts
    if strict:
        restore_structure(model, state)
    else:
        resize_layers(model, state)
    model.load_state_dict(state, strict=strict)
    return model


def _behind(state: Mapping[str, Tensor], prefix: str, path: object) -> Mapping[str, Tensor]:
    """The entries behind a prefix, without it."""
    found = {rest: tensor for name, tensor in state.items() if (rest := behind(name, prefix))}
    if not found:
        there = sorted({f"{name.partition('.')[0]}." for name in state if "." in name})
        raise ValueError(
            f"{path} has no names behind the prefix {prefix!r}. There are "
            f"{', '.join(map(repr, there)) or 'none with a prefix'}; give one of these, or none for all."
        )
    return found


def _building_hooks(model: nn.Module) -> list[str]:
    """The hooks of Lightning in which a module may build its network, if it has any."""
    owners = {
        hook: next((kind for kind in type(model).__mro__ if hook in vars(kind)), nn.Module)
        for hook in ("configure_model", "setup")
    }
    foreign = ("lightning", "pytorch_lightning", "torch")
    return [hook for hook, kind in owners.items() if kind.__module__.partition(".")[0] not in foreign]


def _unbuilt(model: nn.Module) -> str:
    hooks = _building_hooks(model)
    called = " and ".join("setup('fit')" if hook == "setup" else f"{hook}()" for hook in hooks)
    return (
        f"{type(model).__name__} has no parameters yet, so there is nothing to load into. Build its "
        "network first: "
        + (f"call its {called}, then load." if hooks else "as configure_model() or setup() do.")
    )


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

    Resized parameters stay the same objects, with undefined values; they keep dtype, device,
    ``requires_grad`` and the attributes set on them: load ``state`` next, and build optimizers after.

    Args:
        model: a network of the class that ``state`` was taken from.
        state: what its ``state_dict()`` gave, before or after any number of cuts.

    Raises:
        ValueError: if names differ, or a shape differs in a way that no cut explains: names the first
            layer that does not fit, with both shapes. The model is untouched then.
    """
    own = model.state_dict()
    unknown = set(unknown_records(model, state))
    for kind, names, others in (("the file lacks", own, state), ("only the file has", state, own)):
        expected = (name for name in names if not is_record(name) or name in unknown)
        missing = next((name for name in expected if name not in others), None)
        if missing is not None:
            raise ValueError(
                f"The file is of another architecture than {type(model).__name__}: {kind} {missing!r}."
                f"{_explanation(model, own, state)}"
            )
    resize_layers(model, state)


def _explanation(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Why names may differ, and what to do, where that can be told."""
    if not own:
        return f" {_unbuilt(model)}"
    if sorted(map(bare, own)) == sorted(map(bare, state)):
        return (
            " The names differ by torch.compile's '_orig_mod.' or DataParallel's 'module.' alone; "
            "load_pruned understands these."
        )
    if there := common_prefixes(own, state):
        return (
            f" Behind {' and '.join(map(repr, there))} the file has all of its names: "
            f"load_pruned(..., prefix={there[0]!r})."
        )
    if here := common_prefixes(state, own):
        return f" It is one of its submodule {here[0][:-1]!r}: load it into that."
    hooks = _building_hooks(model)
    if hooks and own.keys() <= state.keys():
        return f" Is it built in {' or '.join(hooks)}()? Then call that before loading."
    return ""


def resize_on_load(module: nn.Module) -> RemovableHandle:
    """Let every later ``load_state_dict`` of ``module`` resize its layers first, as the file has them.

    Names may differ by wrappers (``_orig_mod.``, ``module.``), as for :func:`load_pruned`. The hook also
    acts where ``module`` is a part of a larger module, and copies of the module have it, pickled ones
    too.
    """
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(_resize)  # type: ignore[no-untyped-call]
    return handle


def _resize(owner: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    own = {f"{prefix}{name}" for name in owner.state_dict()}
    found = [name for name in state if name.startswith(prefix)]
    for name, match in matching_names(found, own).items():
        state[match] = state.pop(name)
    resize_layers(owner, state, prefix)


class PrunedCheckpointMixin:
    """Lets a LightningModule load its own pruned checkpoints, also by ``load_from_checkpoint``.

    Put it first among the bases: ``class MyModule(PrunedCheckpointMixin, LightningModule)``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which the constructor of a module never gets to this one."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[1 : cls.__mro__.index(PrunedCheckpointMixin)]
        if nn.Module in before:  # which calls no constructor after its own
            module = next(kind for kind in before if issubclass(kind, nn.Module))
            raise TypeError(
                f"{cls.__name__} has {module.__name__} before PrunedCheckpointMixin, which would do "
                f"nothing there. Put PrunedCheckpointMixin first: class {cls.__name__}"
                f"(PrunedCheckpointMixin, {module.__name__})."
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self, nn.Module), "the mixin stands before a LightningModule"
        resize_on_load(self)
