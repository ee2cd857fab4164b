"""The capture of a fit: hooks while it runs, and what a fit without one does not notice."""

from typing import Any

import lightning.pytorch as pl
from helpers.fits import Classifier, Fit, hooks

from acsp_lightning import PruningSettings
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.trainer.capturing import FitCapture
from acsp_lightning.trainer.copies import Copies
from acsp_lightning.trainer.survey import FitSurvey, survey_fit


class Capturer(pl.Callback):
    """Captures the validation of epoch 0, as the pruning callback does."""

    def __init__(self) -> None:
        self.settings = PruningSettings(selection={"curve": "damage"})
        self.capture = FitCapture()
        self.survey: FitSurvey | None = None
        self.captured: Captured | None = None
        self.hooks: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.survey = survey_fit(trainer, self.settings, Copies(), None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.survey is not None and trainer.current_epoch == 0:
            self.survey, groups = self.survey.due(pl_module, self.settings, [])
            self.capture.begin(
                pl_module, list(groups.values()), self.survey, self.settings.selection.grid
            )

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.capture.expect(trainer, batch, self.settings.read_batch)
        self.hooks.append(hooks(pl_module))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.capture.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.capture.is_running and self.survey is not None:
            self.captured = self.capture.finish(trainer, 0.5, self.survey)
        self.hooks.append(hooks(pl_module))


def test_a_validation_is_captured_and_leaves_no_hook(fit: Fit) -> None:
    capturer = Capturer()
    fit(Classifier(), [capturer], max_epochs=2, num_sanity_val_steps=0)
    found = capturer.captured
    assert found is not None
    assert (found.epoch, found.metric, found.activations.samples) == (0, 0.5, 18)
    assert not capturer.capture.is_running
    during, after = capturer.hooks[:3], capturer.hooks[3:]
    assert min(during) > 0
    assert max(after) == 0


def test_hooks_are_removed_where_a_capture_is_stopped(fit: Fit) -> None:
    class Stopped(Capturer):
        def on_validation_batch_end(self, *arguments: Any) -> None:
            super().on_validation_batch_end(*arguments)
            self.capture.stop()

    capturer, module = Stopped(), Classifier()
    fit(module, [capturer], max_epochs=1)
    assert capturer.captured is None
    assert hooks(module) == 0
    capturer.capture.stop()
    capturer.capture.pause()
    capturer.capture.expect(None, None, None)  # type: ignore[arg-type]
