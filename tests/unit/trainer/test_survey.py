"""What a fit is found to be before its first epoch."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import CLASSES, Classifier, Fit, callback, noisy_images, train_loader, val_loader
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import PruningSettings, measure_complexity
from acsp_lightning.structure.groups import Tracing
from acsp_lightning.trainer.copies import Copies
from acsp_lightning.trainer.survey import FitSurvey, survey_fit, warn_of_tracing


class Surveyor(pl.Callback):
    """Surveys a fit as the pruning callback does, and keeps what it found."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("selection", {"curve": "damage"})
        self.settings = PruningSettings(**options)
        self.found: FitSurvey | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found = survey_fit(trainer, self.settings, Copies(), None)


def surveyed(make_trainer: Fit, module: Classifier, val: Any = None, **options: Any) -> FitSurvey:
    surveyor = Surveyor(**options)
    trainer = make_trainer(surveyor, max_epochs=1)
    trainer.fit(module, train_loader(), val_loader() if val is None else val)
    assert surveyor.found is not None
    return surveyor.found


def test_example_classes_and_size_are_those_of_data_and_network(make_trainer: Fit) -> None:
    module = Classifier()
    expected = measure_complexity(module, noisy_images(18, seed=2).tensors[0][:1])
    found = surveyed(make_trainer, module)
    first = noisy_images(18, seed=2).tensors[0]
    assert torch.equal(found.example.traced[0], first[:2])
    assert torch.equal(found.example.counted[0], first[:1])
    assert found.num_classes == CLASSES
    assert found.complexity == expected


def test_a_rare_class_is_named(make_trainer: Fit) -> None:
    images, labels = noisy_images(18, seed=2).tensors
    labels = labels.clone()
    labels[labels == 2] = 0
    labels[-1] = 2
    val = DataLoader(TensorDataset(images, labels), batch_size=6)
    with pytest.warns(UserWarning, match="class.* 2"):
        surveyed(make_trainer, Classifier(), val)


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_a_validation_that_shuffles_is_told_where_cuts_are_measured(make_trainer: Fit) -> None:
    loader = val_loader(120, shuffle=True)
    surveyed(make_trainer, Classifier(), loader)
    with pytest.warns(UserWarning, match="validation loader shuffles its samples"):
        found = surveyed(make_trainer, Classifier(), loader, selection={"curve": "measured"})
    assert found.held_back > 0


def test_nothing_is_trained_before_a_refusal(fit: Fit) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match="round_to is 7"):
        fit(module, [callback(0, round_to=7)])
    assert module.steps == 0


def test_layers_that_stay_whole_and_that_nobody_calls_are_named() -> None:
    with pytest.warns(UserWarning, match=r"left whole\. 'conv': too odd; 'fc': too narrow\."):
        warn_of_tracing(Tracing((), {"conv": "too odd", "fc": "too narrow"}), ())
    with pytest.warns(UserWarning, match=r"forward calls 'aux', 'head' neither"):
        warn_of_tracing(Tracing((), {}), ("aux", "head"))


def test_layers_in_residual_sums_are_counted_in_the_log(logged: list[str]) -> None:
    warn_of_tracing(Tracing((), {}, ("conv1", "conv2")), ())
    assert logged == [
        "2 more layers write into residual sums and stay whole; residual=True cuts them too."
    ]
