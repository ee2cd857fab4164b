"""The work of ``acsp-lightning export``, after its arguments are parsed."""

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
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from acsp_lightning.callback import ACSPPruningCallback
from acsp_lightning.capture.batches import BatchReader, read_batch, read_with
from acsp_lightning.checkpoint import load_pruned
from acsp_lightning.cli.formats import FORMATS
from acsp_lightning.cli.lightning_cli import ACSPCommandLine, as_text
from acsp_lightning.cli.refusals import RefusalError
from acsp_lightning.cli.sources import Sources, check_class, check_file, find_config
from acsp_lightning.export.card import callback_settings, model_card, pruning_steps
from acsp_lightning.export.formats import Exported, export_onnx, export_program, export_state_dict
from acsp_lightning.files import atomic_write, verify_checksums
from acsp_lightning.measure.accuracy import OutputReader, count_correct
from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.report import PruningStep
from acsp_lightning.structure.example import Example, as_arguments
from acsp_lightning.trainer.checks import callbacks_of
from acsp_lightning.trainer.loaders import validation_batches

WRITERS: Mapping[str, Callable[[nn.Module, tuple[Any, ...], Path], Exported]] = {
    "onnx": export_onnx,
    "torch.export": export_program,
    "state_dict": lambda model, _, path: export_state_dict(model, path),
}
# A minimal Trainer that reads a batch from the data as in a fit.
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def export(options: argparse.Namespace, words: Sequence[str], arguments: Sequence[str]) -> Iterator[str]:
    """Write the requested files; yields a line of text for every file.

    Args:
        options: as parsed by ``cli/export.py``.
        words: arguments typed after ``acsp-lightning export``.
        arguments: arguments of the classes, as typed.

    Raises:
        RefusalError: if something is missing; or other errors that say what does not match.
    """
    with _expected_noise_ignored():
        yield from _export(options, words, arguments)


def _export(
    options: argparse.Namespace, words: Sequence[str], arguments: Sequence[str]
) -> Iterator[str]:
    checkpoint = check_file(options.checkpoint)
    config = options.config or find_config(checkpoint)
    for key in ("model", "data"):
        check_class(key, vars(options)[key])
    sources = Sources(
        command=["export", *words],
        configs=[config] if config else [],
        given={key: vars(options)[key] for key in ("model", "data") if vars(options)[key] is not None},
        checkpoint=checkpoint,
    )
    contents = sources.contents()
    verify_checksums(checkpoint)
    folder: Path = options.out or checkpoint.parent
    targets = {form: folder / f"{checkpoint.stem}{FORMATS[form]}" for form in options.to}
    for target in targets.values():
        if target.resolve() == checkpoint.resolve():
            raise RefusalError(f"{target} is the checkpoint itself; name another folder with --out.")
    _make(folder)

    cli = _build(sources, contents, arguments, 1.0 if options.accuracy else 1)
    module: pl.LightningModule = cli.model
    callbacks = callbacks_of(cli.trainer)
    pruning = [callback for callback in callbacks if isinstance(callback, ACSPPruningCallback)]
    looking = _Looking(
        lambda: _load(module, sources),
        pruning[0].read_batch if pruning else read_batch,
        pruning[0].read_outputs if pruning else None,
        options.accuracy,
    )
    if cli.datamodule is None and not is_overridden("val_dataloader", module):
        # As a Trainer would, if it had data.
        module.setup("validate")
        module.configure_model()
        _load(module, sources)
        if module.example_input_array is None or options.accuracy:
            sources.check_data(module, cli.datamodule)
        looking.look_at(module, module.example_input_array)
    else:
        callbacks.append(looking)
        cli.trainer.validate(module, datamodule=cli.datamodule, verbose=False)
    if not looking.inputs:
        raise RefusalError("The validation loader is empty; files are tried on a batch of it.")

    exported = []
    for form, target in targets.items():
        file = WRITERS[form](module, looking.inputs, target)
        exported.append(file)
        yield f"{target}: {form}, {file.size:,} bytes, at most {file.difference:.2g} from the network"
    card = folder / f"{checkpoint.stem}.md"
    source = module if cli.datamodule is None else cli.datamodule
    steps, epoch = _history(checkpoint)
    text = model_card(
        module,
        steps,
        source=checkpoint.name,
        epoch=epoch,
        inputs=looking.inputs,
        data=f"{type(source).__module__}.{type(source).__qualname__}",
        settings=callback_settings(pruning[0]) if len(pruning) == 1 else None,
        complexity=looking.complexity,
        accuracy=looking.accuracy,
        exported=exported,
    )
    with atomic_write(card) as draft:
        draft.write_text(text)
    yield f"{card}: model card"


def _load(module: pl.LightningModule, sources: Sources) -> None:
    """Load the checkpoint into a module that was set up."""
    checkpoint = sources.checkpoint
    assert checkpoint is not None, "an export has one"
    if not module.state_dict():
        raise RefusalError(
            f"{type(module).__name__} has no parameters after setup('validate') and configure_model(). "
            "Build its network in every stage, not in setup('fit') alone."
        )
    try:
        load_pruned(module, checkpoint)
    except ValueError as error:
        raise RefusalError(f"{error} {_built_from(sources)}") from error


class _Looking(pl.Callback):
    """Loads the weights when the network is built, and collects from a validation what the export needs.

    Attributes:
        inputs: arguments of forward from the first batch; empty if there is none.
        complexity: complexity of the network for one sample; None if it cannot be counted.
        accuracy: top-1 accuracy, in [0, 1]; None if not requested, or the outputs are not class scores.
    """

    def __init__(
        self,
        load: Callable[[], None],
        read_batch: BatchReader,
        read_outputs: OutputReader | None,
        measure: bool,
    ) -> None:
        self._load = load
        self._read_batch = read_batch
        self._read_outputs = read_outputs
        self._measure = measure
        self.inputs: tuple[Any, ...] = ()
        self.complexity: Complexity | None = None
        self.accuracy: float | None = None

    def look_at(self, module: pl.LightningModule, inputs: Any) -> None:
        """Take the inputs of a forward pass."""
        self.inputs = as_arguments(module, inputs)
        try:
            self.complexity = measure_complexity(module, Example.of(module, inputs).counted)
        except ValueError as error:
            _warn(f"{error} The card goes without.")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: setup() may have built the network, for the second time.
        with torch.inference_mode(False):
            self._load()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Tensors made under the Trainer's inference mode could not be traced.
        with torch.inference_mode(False):
            batch = next(validation_batches(trainer))
            self.look_at(pl_module, read_with(self._read_batch, batch)[0])
            if self._measure:
                counts = count_correct(
                    pl_module, validation_batches(trainer), self._read_batch, self._read_outputs
                )
                self.accuracy = None if counts is None else counts[0] / counts[1]


def _build(
    sources: Sources, contents: Sequence[Mapping[str, Any]], arguments: Sequence[str], limit: float
) -> ACSPCommandLine:
    """Module, data and Trainer, with only the pruning callbacks; nothing is run."""
    callbacks: list[Any] = []
    for content in contents:
        entries = (content.get("trainer") or {}).get("callbacks") or []
        callbacks += entries if isinstance(entries, list) else [entries]
    trainer = {
        **TRAINER,
        "limit_val_batches": limit,
        "callbacks": [entry for entry in callbacks if _is_pruning(entry)],
    }
    configs = [
        {key: value for key, value in content.items() if key != "trainer"} for content in contents
    ]
    named = [f"--{key}={value}" for key, value in sources.given.items()]
    try:
        return ACSPCommandLine(
            pl.LightningModule,
            None,
            save_config_callback=None,
            seed_everything_default=False,
            parser_kwargs={"exit_on_error": False},
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            args=[
                *(f"--config={as_text(content)}" for content in [*configs, {"trainer": trainer}]),
                *named,
                *arguments,
            ],
            run=False,
        )
    except argparse.ArgumentError as error:
        raise RefusalError(f"{error} {_built_from(sources)}") from error


def _built_from(sources: Sources) -> str:
    origins = [*map(str, sources.configs), *(f"--{k}={value}" for k, value in sources.given.items())]
    return f"The network was built from {' and '.join(origins)}."


def _is_pruning(entry: Any) -> bool:
    path = entry.get("class_path") if isinstance(entry, Mapping) else None
    try:
        kind = pydoc.locate(str(path))
    except pydoc.ErrorDuringImport:  # a callback that is not needed here
        return False
    return isinstance(kind, type) and issubclass(kind, ACSPPruningCallback)


def _history(path: Path) -> tuple[list[PruningStep] | None, int | None]:
    """The cuts recorded in a file, and its epoch; None, with a warning, where it has no record."""
    steps, epoch = None, None
    if path.suffix != ".safetensors":
        content = torch.load(path, map_location="cpu", weights_only=True)
        epoch = content.get("epoch") if "state_dict" in content else None
        try:
            steps = pruning_steps(content)
        except ValueError as error:
            _warn(f"{path}: {error} The card goes without the cuts.")
            return None, epoch
    if steps is None:
        _warn(f"{path} holds weights alone; whether they were pruned, the card cannot tell.")
    elif not steps:
        _warn(f"{path} tells of no cut; what was exported is the whole network.")
    return steps, epoch


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; name another one with --out.")
    folder.mkdir(parents=True, exist_ok=True)


def _warn(message: str) -> None:
    print(f"acsp-lightning export: warning: {message}", file=sys.stderr)


@contextmanager
def _expected_noise_ignored() -> Iterator[None]:
    """Silence Lightning's messages about a Trainer that only reads a batch."""
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
