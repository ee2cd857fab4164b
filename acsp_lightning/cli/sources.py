"""What a network and its data are built from: configurations, a checkpoint, command-line arguments."""

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import get_loader
from lightning.pytorch.utilities.model_helpers import is_overridden

from acsp_lightning.cli.refusals import PROGRAM, RefusalError
from acsp_lightning.files import verify_checksums

CONFIG = "config.yaml"
LEVELS = 3  # folders above a checkpoint that are searched for its configuration
KEYS = ("model", "data", "trainer", "seed_everything")
# Keys of a checkpoint for what save_hyperparameters() saved of each.
HYPERPARAMETERS = {
    "model": ("hyper_parameters", "hparams_name"),
    "data": ("datamodule_hyper_parameters", "datamodule_hparams_name"),
}
EXAMPLES = {"model": "my_module.MyModel", "data": "my_module.MyData"}


@dataclass(frozen=True, slots=True)
class Sources:
    """What the network and its data of a command are built from.

    Attributes:
        command: the command-line arguments, as typed.
        configs: configurations; later ones win.
        given: class paths by key, "model" and "data", or other values given there.
        checkpoint: holds the weights, and perhaps the arguments of the classes.
    """

    command: Sequence[str]
    configs: Sequence[Path]
    given: Mapping[str, str]
    checkpoint: Path | None

    def contents(self) -> list[dict[str, Any]]:
        """The configurations, each with only ``KEYS`` and a class wherever one is needed.

        Raises:
            RefusalError: if something is missing; the message names it, and the command that would
                work.
            OSError: if a file cannot be read.
        """
        found = [read_config(path) for path in self.configs]
        for path, content in zip(self.configs, found, strict=True):
            self._name_classes(path, content)
        lacking = [key for key in EXAMPLES if not any(content.get(key) for content in found)]
        named = {key: self._from_checkpoint(key) for key in lacking if key in self.given}
        lacking = [key for key in lacking if key not in named]
        if "model" in lacking:
            raise RefusalError(self._missing(lacking))
        return [*found, *([named] if named else [])]

    def check_data(self, model: pl.LightningModule, data: pl.LightningDataModule | None) -> None:
        """Raise ``RefusalError``, with a command that would work, if a network has no data."""
        if data is None and not is_overridden("val_dataloader", model):
            raise RefusalError(self._missing(["data"]))

    def _name_classes(self, path: Path, content: dict[str, Any]) -> None:
        """Add the classes to a configuration whose command line had fixed ones."""
        nameless = without_class(content)
        unknown = [key for key in nameless if not _is_class_path(self.given.get(key))]
        if unknown:
            raise RefusalError(
                f"{path} has a {' and a '.join(unknown)} without class_path, as a command line with "
                f"fixed classes writes it. Name the class: {self._with(*unknown)}"
            )
        for key in nameless:
            content[key] = {"class_path": self.given[key], "init_args": dict(content[key])}

    def _from_checkpoint(self, key: str) -> Any:
        """A class from the command line, with the arguments in the checkpoint."""
        given = self.given[key]
        if not _is_class_path(given) or "." not in given:
            return given
        content = {} if self.checkpoint is None else read_checkpoint(self.checkpoint)
        return with_saved_arguments(key, given, content)

    def _missing(self, keys: Sequence[str]) -> str:
        files = [*self.configs, *([] if self.checkpoint is None else [self.checkpoint])]
        where = " and ".join(map(str, files)) or "The command line"
        what = {"model": "the network is", "data": "its data are"}[keys[0]]
        does = "do" if len(files) > 1 else "does"
        return (
            f"{where} {does} not say what {what} built from. Name the class: {self._with(*keys)}, or "
            f"give the YAML of its run: {self._with('config')}"
        )

    def _with(self, *keys: str) -> str:
        """The command with the arguments that it lacks."""
        words = [
            "--config=FILE" if key == "config" else f"--{key}={self._saved_class(key)}" for key in keys
        ]
        return shlex.join([PROGRAM, *self.command, *words])

    def _saved_class(self, key: str) -> str:
        """The class named in the checkpoint, as a suggestion (imports run code), or an example."""
        content = {} if self.checkpoint is None else read_checkpoint(self.checkpoint)
        arguments = content.get(HYPERPARAMETERS[key][0])
        found = arguments.get("_class_path") if isinstance(arguments, Mapping) else None
        return found if isinstance(found, str) else EXAMPLES[key]


def without_class(content: Mapping[str, Any]) -> list[str]:
    """Which of model and data a configuration gives arguments for, but no class."""
    entries = {key: content.get(key) for key in EXAMPLES}
    return [
        key
        for key, entry in entries.items()
        if isinstance(entry, Mapping) and entry and "class_path" not in entry
    ]


def with_saved_arguments(key: str, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A class with the arguments that ``save_hyperparameters()`` saved in a checkpoint.

    Args:
        key: "model" or "data".
        path: import path of the class.
        content: content of the checkpoint.

    Raises:
        RefusalError: as :func:`locate`.
    """
    names = inspect.signature(locate(key, path)).parameters
    arguments, whole = (content.get(name) for name in HYPERPARAMETERS[key])
    arguments = {k: v for k, v in dict(arguments or {}).items() if not str(k).startswith("_")}
    if whole and whole in names:
        arguments = {whole: arguments}
    elif all(entry.kind is not inspect.Parameter.VAR_KEYWORD for entry in names.values()):
        arguments = {name: value for name, value in arguments.items() if name in names}
    # Arguments that the class passes on to its bases are resolved when it is instantiated.
    return {"class_path": path, **({"dict_kwargs": arguments} if arguments else {})}


def find_config(checkpoint: Path) -> Path | None:
    """The configuration that a run saved above its checkpoint, if there is one."""
    for folder in checkpoint.absolute().parents[:LEVELS]:
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    return None


def read_config(path: Path) -> dict[str, Any]:
    """Model, data, Trainer and seed of a configuration, written by a run or by hand.

    Raises:
        RefusalError: if it is not a YAML mapping.
        OSError: if it cannot be read.
    """
    text = check_file(path).read_text(encoding="utf-8")
    try:
        content = get_loader("yaml")(text)
    except Exception as error:  # raised by the YAML package
        raise RefusalError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise RefusalError(
            f"{path} holds a {type(content).__name__}; it must name a model, and its data."
        )
    for subcommand in ("fit", "validate", "test", "predict"):
        if isinstance(content.get(subcommand), Mapping):
            content = content[subcommand]
    return {key: content[key] for key in KEYS if key in content}


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """A checkpoint as plain data; empty if it is a safetensors file or not a mapping.

    Raises:
        ValueError: if it is damaged, or holds other objects than tensors and plain data.
        OSError: if it cannot be read.
    """
    if path.suffix == ".safetensors":
        return {}
    verify_checksums(check_file(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RefusalError(
            f"{path} cannot be read with weights_only=True ({type(error).__name__}: {error}). If it is "
            "no checkpoint, give one; if it holds other objects than tensors and plain data, save the "
            "weights alone: torch.save(model.state_dict(), path)."
        ) from error
    return content if isinstance(content, Mapping) else {}


def check_file(path: Path) -> Path:
    """Return the path if it is a file.

    Raises:
        FileNotFoundError: if it is not.
    """
    if not path.is_file():
        found = "is a folder; give a file in it" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {found}.")
    return path


def locate(key: str, path: str) -> type:
    """A class by its import path.

    Raises:
        RefusalError: if there is no such class; errors of the module itself are passed on.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise RefusalError(
            f"--{key}={path}: there is no module {error.name!r} in {Path.cwd()} or among the installed "
            "packages. Change to the folder that holds it, or put that on PYTHONPATH."
        ) from error
    if not isinstance(found, type):
        raise RefusalError(f"--{key}={path}: the module {module!r} has no class {name!r}.")
    return found


def check_class(key: str, given: str | None) -> None:
    """Raise ``RefusalError`` if the import path given to ``--model=`` or ``--data=`` has no class."""
    if given is not None and _is_class_path(given) and "." in given:
        locate(key, given)


def _is_class_path(word: str | None) -> bool:
    """Whether this is the import path of a class, and not a file or other text."""
    return word is not None and bool(re.fullmatch(r"[^\W\d][\w.]*", word)) and word[-5:] != ".yaml"
