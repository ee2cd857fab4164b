"""``acsp-lightning export``: the network of a checkpoint as files for other programs, with a card."""

import argparse
import logging
import pydoc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import get_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from acsp_lightning.callback import ACSPPruningCallback
from acsp_lightning.capture.batches import BatchReader, read_batch
from acsp_lightning.checkpoint import load_pruned
from acsp_lightning.cli.lightning_cli import ACSPCommandLine
from acsp_lightning.export.card import callback_settings, model_card, pruning_steps
from acsp_lightning.export.formats import Exported, export_onnx, export_program, export_state_dict
from acsp_lightning.files import atomic_write, verify_checksums
from acsp_lightning.measure.accuracy import count_correct
from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.report import PruningStep
from acsp_lightning.structure.example import Example, as_arguments
from acsp_lightning.trainer.loaders import validation_batches

FORMATS: Mapping[str, tuple[str, Callable[[nn.Module, tuple[Any, ...], Path], Exported]]] = {
    "onnx": (".onnx", export_onnx),
    "torch.export": (".pt2", export_program),
    "state_dict": (".pt", lambda model, _, path: export_state_dict(model, path)),
}
CONFIG = "config.yaml"
LEVELS = 3  # of folders above a checkpoint that may hold its configuration
# What is needed of a Trainer to take a batch from the data as it would in a fit, and no more.
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def main(arguments: Sequence[str]) -> None:
    """Exports the network of a checkpoint, and writes a model card beside the files.

    Args:
        arguments: what follows ``acsp-lightning export``.

    Raises:
        SystemExit: if that cannot be done; one message has said why.
    """
    parser = argparse.ArgumentParser(
        prog="acsp-lightning export",
        description="Writes the network of a checkpoint, pruned or not, for use without this package. "
        "Every file is read back and compared with the network; a model card tells of both.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a Lightning checkpoint")
    parser.add_argument(
        "--to", nargs="+", required=True, choices=FORMATS, help="formats to write, one or more"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the YAML with model and data [the nearest {CONFIG} above CKPT]",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the files [that of CKPT]")
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="measure the accuracy on all validation samples for the card; else one batch is enough",
    )
    options = parser.parse_args(arguments)
    try:
        with _expected_noise_ignored():
            for line in _export(options):
                print(line)
    except (ImportError, MisconfigurationException, OSError, ValueError) as error:
        parser.error(str(error))


def _export(options: argparse.Namespace) -> Iterator[str]:
    """Write what was asked for; gives a line of text for every file that was written."""
    checkpoint = _check_file(options.checkpoint)
    config = _check_file(options.config or _find_config(checkpoint))
    folder: Path = options.out or checkpoint.parent
    targets = {form: folder / f"{checkpoint.stem}{FORMATS[form][0]}" for form in options.to}
    for target in targets.values():
        if target.resolve() == checkpoint.resolve():
            raise ValueError(f"{target} is the checkpoint itself; name another folder with --out.")
    _make(folder)

    cli = _build(config, 1.0 if options.accuracy else 1)
    module: pl.LightningModule = cli.model
    module.configure_model()
    verify_checksums(checkpoint)
    try:
        load_pruned(module, checkpoint)
    except ValueError as error:
        raise ValueError(f"{error} The network was built from {config}.") from error
    callbacks: list[pl.Callback] = vars(cli.trainer)["callbacks"]  # unseen by types
    pruning = [callback for callback in callbacks if isinstance(callback, ACSPPruningCallback)]
    looking = _Looking(pruning[0].read_batch if pruning else read_batch, options.accuracy)
    callbacks.append(looking)
    cli.trainer.validate(module, datamodule=cli.datamodule, verbose=False)
    if not looking.inputs:
        raise ValueError("The validation loader is empty; files are tried on a batch of it.")

    exported = []
    for form, target in targets.items():
        file = FORMATS[form][1](module, looking.inputs, target)
        exported.append(file)
        yield f"{target}: {form}, {file.size:,} bytes, at most {file.difference:.2g} from the network"
    card = folder / f"{checkpoint.stem}.md"
    text = model_card(
        module,
        _history(checkpoint),
        source=checkpoint.name,
        inputs=looking.inputs,
        data=f"{type(cli.datamodule).__module__}.{type(cli.datamodule).__qualname__}",
        settings=callback_settings(pruning[0]) if len(pruning) == 1 else None,
        complexity=looking.complexity,
        accuracy=looking.accuracy,
        exported=exported,
    )
    with atomic_write(card) as draft:
        draft.write_text(text)
    yield f"{card}: model card"


class _Looking(pl.Callback):
    """Takes from a validation what the export needs.

    Attributes:
        inputs: arguments of forward, those of the first batch; empty if there is none.
        complexity: of the network, for one sample; None if it cannot be counted.
        accuracy: top 1, in [0, 1]; None if it was not asked for, or outputs are no logits.
    """

    def __init__(self, read_batch: BatchReader, measure: bool) -> None:
        self._read_batch = read_batch
        self._measure = measure
        self.inputs: tuple[Any, ...] = ()
        self.complexity: Complexity | None = None
        self.accuracy: float | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Tensors made under the Trainer's inference mode could not be traced.
        with torch.inference_mode(False):
            inputs = self._read_batch(next(validation_batches(trainer)))[0]
            self.inputs = as_arguments(pl_module, inputs)
            try:
                self.complexity = measure_complexity(pl_module, Example.of(pl_module, inputs).counted)
            except ValueError as error:
                _warn(f"{error} The card goes without.")
            if self._measure:
                counts = count_correct(pl_module, validation_batches(trainer), self._read_batch)
                self.accuracy = None if counts is None else counts[0] / counts[1]


def _build(config: Path, limit: float) -> ACSPCommandLine:
    """Module, data and Trainer of a configuration, with its pruning callbacks alone; nothing is run."""
    content = _read_config(config)
    callbacks = (content.get("trainer") or {}).get("callbacks") or []
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    try:
        return ACSPCommandLine(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=None,
            seed_everything_default=False,
            parser_kwargs={"exit_on_error": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args={
                **{key: content[key] for key in ("model", "data", "seed_everything") if key in content},
                "trainer": {
                    **TRAINER,
                    "limit_val_batches": limit,
                    "callbacks": [entry for entry in entries if _is_pruning(entry)],
                },
            },
            run=False,
        )
    except argparse.ArgumentError as error:
        raise ValueError(f"{config} does not fit its classes. {error}") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    text = path.read_text()
    try:
        content = get_loader("yaml")(text)
    except Exception as error:  # of the YAML package
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    missing = [k for k in ("model", "data") if not isinstance(content, Mapping) or k not in content]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}; the network and its data are built from the "
            "YAML that it was trained with. Give that one: --config FILE."
        )
    for key in ("model", "data"):
        if isinstance(content[key], Mapping) and "class_path" not in content[key]:
            raise ValueError(f"{path} has a {key} without class_path; write its class there.")
    found: Mapping[str, Any] = content
    return found


def _is_pruning(entry: Any) -> bool:
    path = entry.get("class_path") if isinstance(entry, Mapping) else None
    try:
        kind = pydoc.locate(str(path))
    except pydoc.ErrorDuringImport:  # one that is not needed here
        return False
    return isinstance(kind, type) and issubclass(kind, ACSPPruningCallback)


def _history(path: Path) -> list[PruningStep] | None:
    """The cuts that a readable file tells of; None, and a warning, if it does not."""
    steps = None
    if path.suffix != ".safetensors":
        try:
            steps = pruning_steps(torch.load(path, map_location="cpu", weights_only=True))
        except ValueError as error:
            _warn(f"{path}: {error} The card goes without the cuts.")
            return None
    if steps is None:
        _warn(f"{path} holds weights alone; whether they were pruned, the card cannot tell.")
    elif not steps:
        _warn(f"{path} tells of no cut; what was exported is the whole network.")
    return steps


def _find_config(checkpoint: Path) -> Path:
    folders = checkpoint.absolute().parents[:LEVELS]
    for folder in folders:
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise FileNotFoundError(
        f"There is no {CONFIG} in {folders[0]} or the {LEVELS - 1} folders above. Give the YAML that "
        "the network was trained with: --config FILE."
    )


def _check_file(path: Path) -> Path:
    if not path.is_file():
        found = "is a folder; give a file in it" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {found}.")
    return path


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; name another one with --out.")
    folder.mkdir(parents=True, exist_ok=True)


def _warn(message: str) -> None:
    print(f"acsp-lightning export: warning: {message}", file=sys.stderr)


@contextmanager
def _expected_noise_ignored() -> Iterator[None]:
    """What Lightning says of a Trainer that only reads a batch."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",
            ".*GPU available but not used",
            "LightningCLI's args parameter is intended",
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
