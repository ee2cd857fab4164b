"""The subcommands with a configuration: ``acsp-lightning fit --config recipes/digits_vgg.yaml``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from acsp_lightning.callback import ACSPPruningCallback
from acsp_lightning.cli.preview import PreviewCallback, check_writable, write_preview


class CommandLineTrainer(pl.Trainer):
    """A Trainer that can also show what a cut would do."""

    def preview(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        flops: float | None = None,
        keep: float | None = None,
        ckpt_path: str | None = None,
        out: str = ".",
    ) -> None:
        """Shows what a cut would do to the network as it is, and changes nothing.

        The settings are those of the ACSPPruningCallback in the configuration, or its defaults.

        Args:
            model: the module.
            datamodule: its data, of which the validation batches are looked at.
            flops: share of the FLOPs that would stay, in (0, 1], instead of what the settings say.
            keep: share of every layer's channels that would stay, in (0, 1], instead of that.
            ckpt_path: a checkpoint with the trained weights, pruned or not; null: the module as built.
            out: folder in which a folder "preview" gets the record, the page and the plots.
        """
        check_writable(out)
        callbacks: list[pl.Callback] = self.callbacks  # type: ignore[attr-defined]
        settings = next((c for c in callbacks if isinstance(c, ACSPPruningCallback)), None)
        if settings is None:
            settings = ACSPPruningCallback(epochs=[0])
            callbacks.append(settings)
        if flops is not None or keep is not None:
            settings.selection = replace(settings.selection, flops=flops, keep=keep)
        looking = PreviewCallback(settings)
        callbacks.append(looking)
        with warnings.catch_warnings():
            # Of checkpoints that are saved elsewhere from now on; a preview saves none.
            warnings.filterwarnings("ignore", message="The dirpath has changed")
            self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        print(write_preview(looking.step, out))


class ACSPCommandLine(LightningCLI):
    """Module, data, trainer and callbacks from YAML; every fit ends with a test.

    The test takes the network in memory, which is the pruned and fine-tuned one: a checkpoint
    chosen by an earlier validation may hold the network before its last cut. It is left out when
    the module has no ``test_step`` or the data no ``test_dataloader``.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning, and preview."""
        return {**LightningCLI.subcommands(), "preview": {"model", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        """A preview leaves nothing but its own folder, and checkpoints are read as plain data.

        ``--weights_only false`` reads checkpoints that hold other objects, which may run code.
        """
        if self.subcommand == "preview":
            self.save_config_callback = None
            self.config.preview.trainer.logger = False
        options = self.config.get(str(self.subcommand)) or {}
        if "weights_only" in options and options["weights_only"] is None:
            options["weights_only"] = True

    def instantiate_classes(self) -> None:
        """Builds everything; what a class says of its arguments is not buried in a list of types."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse takes a constructor's error for one of several types that do not fit.
            reason = error.__cause__
            while isinstance(reason, ValueError) and reason.__cause__ is not None:
                reason = reason.__cause__
            if reason is None:
                raise
            raise reason from None

    def after_fit(self) -> None:
        """Tests the network as training left it."""
        data = self.model if self.datamodule is None else self.datamodule
        if is_overridden("test_step", self.model) and is_overridden("test_dataloader", data):
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=None)


def command_line(args: ArgsType = None, run: bool = True, epilog: str | None = None) -> ACSPCommandLine:
    """The command line of the package.

    Args:
        args: what would follow the program's name; None reads ``sys.argv``.
        run: run the subcommand; False: there is none, and everything is built and nothing run.
        epilog: ends the help.
    """
    with _expected_warnings_ignored():
        return ACSPCommandLine(
            pl.LightningModule,
            pl.LightningDataModule,
            trainer_class=CommandLineTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "description": "Structured pruning that decides by itself, inside a Lightning job.",
                "epilog": epilog,
            },
            args=args,
            run=run,
        )


@contextmanager
def _expected_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        # The number of workers is the recipe's decision: 0 is right for plots in memory.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Lightning 2.6 asks this of torch 2.15 in its own loops; nobody here can change it.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        yield
