"""The subcommands that take a configuration: ``acsp-lightning fit --config recipes/digits_vgg.yaml``."""

import json
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from acsp_lightning.callback import ACSPPruningCallback
from acsp_lightning.cli.log_folders import empty_folders_removed
from acsp_lightning.cli.preview import PreviewCallback, check_writable, with_shares_joined, write_preview
from acsp_lightning.cli.profile import ProfileCallback, check_target, runtime_of, write_profile
from acsp_lightning.cli.refusals import Parser, RefusalError, is_deliberate
from acsp_lightning.cli.sources import (
    Sources,
    check_class,
    check_file,
    find_config,
    read_checkpoint,
    read_config,
    with_saved_arguments,
    without_class,
)
from acsp_lightning.trainer.checks import callbacks_of, check_trainer

# Titles of groups in the help, where LightningCLI would show docstrings of its classes.
TITLES = {
    "trainer": "Trainer",
    "model": "network: a LightningModule",
    "data": "data: a LightningDataModule",
}
LOOKING = ("preview", "profile")  # subcommands that leave the network as it is
OWN_PLACE = 2  # of a subcommand's own group: after positional arguments and options


class CommandLineTrainer(pl.Trainer):
    """A Trainer that can also show what a cut would do, and time what it may do."""

    def preview(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        flops: list[float] | None = None,
        keep: float | None = None,
        latency: float | None = None,
        ckpt_path: str | None = None,
        out: str = ".",
    ) -> None:
        """Shows what a cut would do to the network, and changes nothing.

        The settings are those of the ACSPPruningCallback in the configuration, or its defaults.

        Args:
            model: the module.
            datamodule: its data; the validation batches are used.
            flops: share of the FLOPs to keep, in (0, 1], instead of that in the settings; of several the
                first, and all of them have a row in the table of what a cut costs.
            keep: share of every layer's channels to keep, in (0, 1], instead of that.
            latency: share of the measured time of a forward pass to keep, in (0, 1], instead of that.
            ckpt_path: a checkpoint with the trained weights, pruned or not; null: the module as built.
            out: folder in which the record, the page and the plots are written to a folder "preview".
        """
        check_writable(out)
        settings = self._settings()
        if flops is not None or keep is not None or latency is not None:
            first = flops[0] if flops else None
            settings.selection = replace(settings.selection, flops=first, keep=keep, latency=latency)
        looking = PreviewCallback(settings, flops or (), out)
        self._look(looking, model, datamodule, ckpt_path)
        print(write_preview(looking.step, out))

    def profile(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        out: str = "times.json",
        runtime: Literal["torch", "onnxruntime"] = "torch",
    ) -> None:
        """Times the network and its layers, cut to many widths, for a cut that is decided elsewhere.

        The settings are those of the ACSPPruningCallback in the configuration, or its defaults.

        Args:
            model: the module.
            datamodule: its data; of the validation batches the first is used.
            out: file to write; on the machine that trains it is given as latency_table.
            runtime: what runs the network and its layers. "onnxruntime": exported, on the CPU.
        """
        check_target(out)
        timing = ProfileCallback(self._settings(), runtime_of(runtime))
        self.limit_val_batches = 1
        self._look(timing, model, datamodule)
        print(write_profile(timing.times, out))

    def _settings(self) -> ACSPPruningCallback:
        callbacks = callbacks_of(self)
        settings = next((c for c in callbacks if isinstance(c, ACSPPruningCallback)), None)
        if settings is None:
            settings = ACSPPruningCallback(epochs=[0])
            callbacks.append(settings)
        return settings

    def _look(
        self,
        callback: pl.Callback,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None,
        ckpt_path: str | None = None,
    ) -> None:
        callbacks_of(self).append(callback)
        with warnings.catch_warnings():
            # Raised about where checkpoints are saved; nobody saves one here.
            warnings.filterwarnings("ignore", message="The dirpath has changed")
            self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)


class ACSPCommandLine(LightningCLI):
    """Module, data, trainer and callbacks from YAML; every fit ends with a test.

    The test uses the network in memory, which is the pruned and fine-tuned one: a checkpoint chosen by
    an earlier validation may hold the network before its last cut. It is skipped if the module has no
    ``test_step`` or the data no ``test_dataloader``.

    Args:
        args: as in LightningCLI.
        sources: what the network and its data are built from, if already known.
        kwargs: as in LightningCLI.
    """

    def __init__(self, *args: Any, sources: Sources | None = None, **kwargs: Any) -> None:
        self._sources = sources
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands of Lightning, and those that only look."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in LOOKING}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Show the options of a subcommand itself before the hundreds of the Trainer and the classes."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        own = set(self._subcommand_method_arguments[subcommand])
        first: list[Any] = []
        others: list[Any] = []
        for group in parser._action_groups:
            names = {action.dest for action in group._group_actions}
            if names and names <= own:
                group.title = f"{subcommand} options"
            else:
                group.title = next((TITLES[n] for n in TITLES if n in names), group.title)
            (first if names and names <= own else others).append(group)
        parser._action_groups = [*others[:OWN_PLACE], *first, *others[OWN_PLACE:]]
        return parser

    def before_instantiate_classes(self) -> None:
        """Let what only looks write its own files alone, and read checkpoints with ``weights_only``.

        ``--weights_only false`` reads checkpoints that hold other objects, which may run code.
        """
        if self.subcommand in LOOKING:
            self.save_config_callback = None
            self.config[self.subcommand].trainer.logger = False
        options = self.config.get(str(self.subcommand)) or {}
        if "weights_only" in options and options["weights_only"] is None:
            options["weights_only"] = True

    def _parse_ckpt_path(self) -> None:
        """Read the module's arguments from a checkpoint, even if that does not name its class."""
        options = self.config.get(str(self.config.get("subcommand"))) or {}
        path, built = options.get("ckpt_path"), options.get("model") or {}
        if not path or not Path(path).is_file() or options.get("weights_only") is False:
            return
        content = read_checkpoint(Path(path))
        arguments = content.get("hyper_parameters") or {}
        kind = arguments.get("_class_path") or built.get("class_path")
        if kind and any(name for name in arguments if not name.startswith("_")):
            model = with_saved_arguments("model", kind, content)
            found = {self.config.subcommand: {"model": model}}
            self.config = self.parser.parse_object(found, self.config)

    def instantiate_classes(self) -> None:
        """Instantiate all classes; errors of a class are shown without jsonargparse's list of types."""
        try:
            super().instantiate_classes()
        except Exception as error:
            # jsonargparse treats a constructor's error as one of several types that do not match.
            reason: BaseException = error
            while isinstance(reason, ValueError) and reason.__cause__ is not None:
                reason = reason.__cause__
            if isinstance(reason, ValueError | TypeError | OSError) and is_deliberate(reason):
                raise RefusalError(str(reason)) from reason
            raise reason from None

    def before_preview(self) -> None:
        """Raise ``RefusalError`` if there is no data."""
        if self._sources is not None:
            self._sources.check_data(self.model, self.datamodule)

    before_profile = before_preview

    def _run_subcommand(self, subcommand: str) -> None:
        if any(isinstance(callback, ACSPPruningCallback) for callback in callbacks_of(self.trainer)):
            check_trainer(self.trainer)  # before it starts processes, whose errors come as tracebacks
        with empty_folders_removed(self.trainer):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Test the network in memory after training."""
        data = self.model if self.datamodule is None else self.datamodule
        if is_overridden("test_step", self.model) and is_overridden("test_dataloader", data):
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=None)


def main(words: list[str]) -> None:
    """Run a subcommand of the Trainer.

    Args:
        words: command-line arguments.
    """
    if words[:1] == ["preview"]:
        words = with_shares_joined(words)
    known, rest = _source_words(words)
    sources = None
    for key in ("model", "data"):
        check_class(key, getattr(known, key))
    asked = {"-h", "--help", "--print_config"} & set(words)
    if not asked and (words[0] in LOOKING or any(map(_lacks_class, known.config))):
        sources, words = _sourced_words(words, known, rest)
    command_line(words, sources=sources)


def _source_words(words: list[str]) -> tuple[Namespace, list[str]]:
    """Split off the arguments that say what a network and its data are built from."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for name in ("model", "data", "ckpt_path"):
        parser.add_argument(f"--{name}")
    return parser.parse_known_args(words)


def command_line(
    args: ArgsType = None, run: bool = True, sources: Sources | None = None
) -> ACSPCommandLine:
    """Run the command line of the package.

    Args:
        args: command-line arguments; None reads ``sys.argv``.
        run: run the subcommand; False: there is none, and the classes are only instantiated.
        sources: what the network and its data are built from, if already known.
    """
    with _expected_warnings_ignored():
        return ACSPCommandLine(
            pl.LightningModule,
            None,  # of LightningDataModule, if any: modules may have loaders of their own
            trainer_class=CommandLineTrainer,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False},
            args=args,
            run=run,
            sources=sources,
        )


def _lacks_class(config: str) -> bool:
    """Whether a file is the configuration of a command line with fixed classes."""
    is_file = not config.lstrip().startswith("{") and Path(config).is_file()  # or the content itself
    return is_file and bool(without_class(read_config(Path(config))))


def _sourced_words(words: list[str], known: Namespace, rest: list[str]) -> tuple[Sources, list[str]]:
    """What a network is built from, also as arguments for the Trainer's command line."""
    checkpoint = None if known.ckpt_path is None else Path(known.ckpt_path)
    if words[0] == "preview" and checkpoint is not None and "://" not in known.ckpt_path:
        check_file(checkpoint)
    near = find_config(checkpoint) if checkpoint is not None and not known.config else None
    given = {key: getattr(known, key) for key in ("model", "data") if getattr(known, key) is not None}
    sources = Sources(
        command=words,
        configs=[Path(path) for path in known.config] or ([near] if near else []),
        given=given,
        checkpoint=checkpoint if checkpoint is not None and checkpoint.is_file() else None,
    )
    contents = [f"--config={as_text(content)}" for content in sources.contents()]
    named = [f"--{key}={value}" for key, value in given.items()]
    weights = [] if known.ckpt_path is None else [f"--ckpt_path={known.ckpt_path}"]
    return sources, [*rest[:1], *contents, *named, *weights, *rest[1:]]


def as_text(content: Any) -> str:
    """A configuration in one line, as a command-line argument."""
    return json.dumps(content, default=str)


@contextmanager
def _expected_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        # The number of workers is the recipe's decision: 0 is right for images in memory.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # The arguments are those of the command line, or replace them.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        # Raised in Lightning 2.6's own loops with torch 2.15; it cannot be avoided here.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        yield
