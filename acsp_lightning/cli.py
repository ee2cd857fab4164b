"""The command line: ``acsp-lightning fit --config recipes/digits_vgg.yaml``."""

import warnings

import lightning.pytorch as pl
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

__all__ = ["ACSPCommandLine", "main"]


class ACSPCommandLine(LightningCLI):
    """Module, data, trainer and callbacks from YAML; every fit ends with a test.

    The test takes the network in memory, which is the pruned and fine-tuned one: a checkpoint
    chosen by an earlier validation may hold the network before its last cut. It is left out when
    the module has no ``test_step`` or the data no ``test_dataloader``.
    """

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


def main(args: ArgsType = None) -> None:
    """Runs one subcommand: fit, validate, test or predict.

    Args:
        args: what would follow the program's name; None reads ``sys.argv``.
    """
    with warnings.catch_warnings():
        # The number of workers is the recipe's decision: 0 is right for pictures in memory.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Lightning 2.6 asks this of torch 2.15 in its own loops; nobody here can change it.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        ACSPCommandLine(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
