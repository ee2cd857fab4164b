"""The capture of a validation of a fit, from its start to its end."""

from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
from torch import nn

from acsp_lightning.capture.batches import BatchReader, read_labelled
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.trainer.loaders import is_combined, validation_loop
from acsp_lightning.trainer.merging import merge_over_ranks
from acsp_lightning.trainer.survey import FitSurvey


class FitCapture:
    """The hooks on the network while a validation is captured, and none at any other time."""

    def __init__(self) -> None:
        self._hooks: ActivationCapture | None = None

    @property
    def is_running(self) -> bool:
        """Whether a validation is being captured."""
        return self._hooks is not None

    def begin(
        self, module: nn.Module, groups: Collection[ChannelGroup], survey: FitSurvey, grid: int | None
    ) -> None:
        """Install the hooks.

        Args:
            module: the network.
            groups: what is captured.
            survey: classes, and which samples are held back.
            grid: positions along a side to which maps are pooled.
        """
        self.stop()
        self._hooks = ActivationCapture(module, groups, grid, survey.num_classes, survey.held_back)
        self._hooks.attach()

    def expect(self, trainer: pl.Trainer, batch: Any, reader: BatchReader) -> None:
        """Tell the hooks of a validation batch that comes; what is wrong with it fails the capture.

        Of a batch that is combined, ``validation_step`` may run the network on parts with other labels:
        the capture then runs it itself.
        """
        if self._hooks is None:
            return
        try:
            inputs, labels = read_labelled(reader, batch)
            if is_combined(validation_loop(trainer)._combined_loader):
                self._hooks.run(as_arguments(trainer.lightning_module, inputs), labels)
            else:
                self._hooks.expect(labels)
        except Exception as error:
            self._hooks.fail(error)

    def pause(self) -> None:
        """Let the hooks rest until the next labels."""
        if self._hooks is not None:
            self._hooks.pause()

    def stop(self) -> None:
        """Leave no hook behind."""
        if self._hooks is not None:
            self._hooks.detach()
        self._hooks = None

    def finish(self, trainer: pl.Trainer, metric: float | None, survey: FitSurvey) -> Captured:
        """Remove the hooks; what the validations of all processes gave.

        Args:
            trainer: of the fit.
            metric: value of the guard's metric in this validation.
            survey: of the network as it was captured.
        """
        hooks, look = self._hooks, survey.look.tracing
        assert hooks is not None, "begin comes first"
        self.stop()
        activations = merge_over_ranks(hooks.finish, trainer.lightning_module.device)
        epoch, groups, held = trainer.current_epoch, hooks.groups, hooks.held_back
        return Captured(epoch, groups, activations, metric, None, look.whole, held, look.sums)
