"""Loading a pruned network into the class it came from: the shapes in the file say what was cut."""

import zipfile
from collections.abc import Callable, Container, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.structure.layers import Side, is_consumer, refusal, side_layout
from acsp_lightning.structure.surgery import parameter_like

M = TypeVar("M", bound=nn.Module)
# Of a zip archive's entry: PyTorch reads no bytes of a "folder", and gives whatever was in memory.
FOLDER = 0x10
SIDES: tuple[Side, Side] = ("out", "in")


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


def check_intact(path: str | PathLike[str]) -> None:
    """Compare a file that ``torch.save`` wrote with the checksums in it; torch.load does not.

    Files in torch's old format, and those written with checksums turned off, have nothing to compare.

    Raises:
        ValueError: if the file is cut short, or a byte of it has changed.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.external_attr & FOLDER:
                        raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
                    if entry.CRC:
                        _read_through(archive, entry)
        except Exception as error:
            raise ValueError(
                f"{path} is damaged: it is incomplete, or its bytes have changed since it was written "
                f"({type(error).__name__}: {error}). Use another copy, or an earlier checkpoint."
            ) from error


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as content:
        while content.read(1 << 20):
            pass


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
    check_intact(path)
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
    _check_readers(resized, shapes)
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


def check_before_load(module: nn.Module, path: Callable[[], Any]) -> RemovableHandle:
    """Let ``load_state_dict`` of ``module`` check first that the file behind it is intact, once.

    Args:
        module: whose weights the file holds.
        path: gives the file once it is known; None, and what is no local file, is passed over.
    """
    checked: set[str] = set()

    def hook(*_: object) -> None:
        source = str(path() or "")
        if source not in checked and Path(source).is_file():
            check_intact(source)
        checked.add(source)

    handle: RemovableHandle = module.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def mend_progress(checkpoint: Mapping[str, Any], epochs: Container[int]) -> None:
    """Let the Trainer skip nothing that was still to come when a checkpoint was written.

    Lightning takes a validation that was due when the checkpoint was written, right after the last
    batch of an epoch, for done, and goes on in the middle of one that was under way: the captured
    activations would be missing or partial. It takes an epoch for done whose checkpoint was written in
    ``on_train_epoch_start``, as the one of the network before a cut is.

    Args:
        checkpoint: a Lightning checkpoint, changed in place before its loops are restored.
        epochs: epochs whose validation must be whole.
    """
    loops = checkpoint["loops"]["fit_loop"]
    total, current = loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]
    if total["ready"] > total["started"]:
        _begin_epoch(loops)
    elif current["started"] > current["processed"] and current["processed"] in epochs:
        _finish_epoch(loops)


def _begin_epoch(loops: Mapping[str, Any]) -> None:
    """Forget the counts of the epoch before, as the Trainer does a moment later."""
    batch = loops["epoch_loop.batch_progress"]
    batch["is_last_batch"] = False
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    scheduler = loops["epoch_loop.scheduler_progress"]
    for progress in (batch, scheduler, optimizer["step"], optimizer["zero_grad"]):
        _set_all(progress["current"], 0)
    _set_all(loops["epoch_loop.val_loop.batch_progress"]["total"], 0)


def _finish_epoch(loops: Mapping[str, Any]) -> None:
    """Have the validation done from its first batch, unless it was over; training batches come first."""
    batch, val = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    seen = val["current"]
    trained = batch["current"]["completed"] == batch["current"]["processed"]
    over = trained and val["is_last_batch"] and seen["completed"] == seen["ready"] > 0
    if over or not batch["is_last_batch"]:
        return
    for counts in (batch["total"], batch["current"]):
        counts["completed"] = counts["processed"]
    # As if interrupted in the first batch: that is where the Trainer begins then.
    val["is_last_batch"] = False
    for counts in (val["total"], val["current"]):
        counts.update(ready=1, started=1, processed=0, completed=0)


def _set_all(counts: dict[str, int], value: int) -> None:
    counts.update(dict.fromkeys(counts, value))


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
    resized: Mapping[str, nn.Module], shapes: Mapping[str, tuple[torch.Size, torch.Size]]
) -> None:
    """A cut of outputs is a cut of somebody's inputs; else the file has another number of classes."""

    def change(layer: str, module: nn.Module, side: Side) -> int:
        ((tensor, dim), *_) = side_layout(module, side).tensors
        own, found = shapes.get(f"{layer}.{tensor}".lstrip("."), ((0, 0), (0, 0)))
        return found[dim] - own[dim]

    consumers = {layer: module for layer, module in resized.items() if is_consumer(module)}
    read = {layer: change(layer, module, "in") for layer, module in consumers.items()}
    for layer, module in consumers.items():
        more = change(layer, module, "out")
        others = [reads for reader, reads in read.items() if reader != layer]
        if more and not any(more * reads > 0 and abs(reads) >= abs(more) for reads in others):
            raise ValueError(
                f"Layer {layer!r} does not fit: it has {abs(more)} {'more' if more > 0 else 'fewer'} "
                "outputs in the file than in the model, and no layer reads them (another number of "
                "classes?)."
            )


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
            new = parameter_like(old, new)
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
