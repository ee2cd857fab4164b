"""The network before the first cut in a file of its own, and how it is found again after a resume."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load, get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from acsp_lightning.checkpoint import load_weights
from acsp_lightning.files import verify_checksums
from acsp_lightning.structure.state_names import bare
from acsp_lightning.trainer.averages import evaluated_state


@dataclass(frozen=True, slots=True)
class Uncut:
    """A file that keeps the network before a cut.

    Attributes:
        path: absolute path, or URL.
        digest: of its weights, by :func:`digest_of`.
    """

    path: str
    digest: str


def digest_of(state: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors in a state dict: names, types, shapes and values.

    Whether the network was compiled or wrapped makes no difference, nor on which device it is.
    """
    found = hashlib.sha256()
    tensors = {bare(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        dense = tensor.detach().cpu()
        dense = dense if dense.layout is torch.strided else dense.to_dense()
        found.update(dense.flatten().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_uncut(trainer: pl.Trainer, epoch: int | None) -> Uncut | None:
    """Write a checkpoint of the network before a cut beside those of the first ModelCheckpoint.

    The fit goes on without it where the file cannot be written.

    Returns:
        What tells the file from others; None if there is none.
    """
    folder = _kept_in(trainer)
    if folder is None:
        return None
    path = os.path.join(folder, _name_of_uncut(epoch))
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except (OSError, RuntimeError) as error:  # torch.save says a full disk in a RuntimeError
        rank_zero_warn(f"The network before the cut could not be saved to {path}: {error}.")
        # The process that writes has failed; the others wait for it here.
        trainer.strategy.barrier()
        return None
    return Uncut(path, digest_of(evaluated_state(trainer)))


def load_uncut(network: nn.Module, trainer: pl.Trainer, kept: Uncut | None, epoch: int | None) -> Uncut:
    """Give a copy of the network the structure and weights that it had before the first cut.

    Args:
        network: a copy of that of the fit; changed in place.
        trainer: in a fit that goes on from a checkpoint.
        kept: of the fit that the checkpoint is from; None: it kept none.
        epoch: zero-based, whose validation was captured for that cut.

    Returns:
        ``kept``, where it is now.

    Raises:
        FileNotFoundError: if it is nowhere; says where it was looked for, what was found there, and
            what to do.
    """
    if kept is None:
        raise FileNotFoundError(
            "distillation is set, and the cut in the checkpoint has the network before it as its "
            "teacher, but the fit that wrote the checkpoint kept no file of that: its Trainer had no "
            "ModelCheckpoint, or the file could not be written. Set distillation to None, or begin anew."
        )
    found: dict[str, str] = {}
    for path in dict.fromkeys(_places(trainer, kept, _name_of_uncut(epoch))):
        found[path] = _load_from(path, network, trainer, kept.digest)
        if not found[path]:
            return replace(kept, path=path)
    raise FileNotFoundError(
        "distillation is set, and the cut in the checkpoint has the network before it as its teacher, "
        "whose file was looked for at "
        f"{', '.join(f'{path} ({reason})' for path, reason in found.items())}. Put it beside the "
        "checkpoint that the fit goes on from, or set distillation to None."
    )


def _load_from(path: str, network: nn.Module, trainer: pl.Trainer, digest: str) -> str:
    """Load a file that should be the uncut network; returns why it is not, or nothing."""
    try:
        if not get_filesystem(path).isfile(path):
            return "no such file"
        load_weights(network, _read(path, trainer)["state_dict"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if digest_of(network.state_dict()) == digest else "the weights of another network"


def _read(path: str, trainer: pl.Trainer) -> Any:
    if _is_local_file_protocol(path):
        verify_checksums(path)
    try:
        return _load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not _needs_code(trainer.ckpt_path):
            raise ValueError(
                "it holds objects that weights_only=True refuses; name their classes to "
                "torch.serialization.add_safe_globals"
            ) from None
        return _load(path, map_location="cpu", weights_only=False)


def _needs_code(path: Any) -> bool:
    """Whether a checkpoint that has been read must have been read with ``weights_only=False``.

    Then the user trusts what the fit has written; the Trainer does not remember it.
    """
    try:
        _load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        return True
    return False


def _places(trainer: pl.Trainer, kept: Uncut, name: str) -> Iterator[str]:
    if trainer.ckpt_path:
        yield os.path.join(os.path.dirname(_absolute(str(trainer.ckpt_path))), name)
    yield kept.path
    folder = _kept_in(trainer)
    if folder is not None:
        yield os.path.join(folder, name)


def _kept_in(trainer: pl.Trainer) -> str | None:
    """The folder in which networks are kept before their cuts: that of the first ModelCheckpoint."""
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.dirpath is None:
        return None
    return _absolute(str(checkpoint.dirpath))


def _name_of_uncut(epoch: int | None) -> str:
    return f"uncut-epoch={epoch}.ckpt"


def _absolute(path: str) -> str:
    return os.path.abspath(path) if _is_local_file_protocol(path) else path
