"""Which modules stand for the network, and where the network before the cut is looked for."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.captured import IMAGES
from helpers.fits import Classifier, Fit, conv_net, hooks, same_state, snapshot
from helpers.outputs import second
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from acsp_lightning.trainer.distillation import find_uncut, scoring_modules


class Pairs(Classifier):
    def forward(self, images: Any) -> Any:
        return images, self.net(images)


class Scaled(Classifier):
    def forward(self, images: Any) -> Any:
        return 2 * self.net(images)


class Normalized(Classifier):
    """Its network is not all of it: a layer with parameters comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Any) -> Any:
        return self.net(self.norm(images))


class Softmax(Classifier):
    def forward(self, images: Any) -> Any:
        return self.net(images).softmax(1)


class Embedding(Classifier):
    def forward(self, images: Any) -> Any:
        return self.net(images)[..., None]


@pytest.mark.parametrize(
    ("kind", "reader", "expected"),
    [
        (Classifier, None, {"": None, "net": None}),
        (Pairs, second, {"": second, "net": None}),
        (Pairs, None, {}),
        (Scaled, None, {"": None}),
        (Normalized, None, {"": None}),
        (Softmax, None, {}),
        (Embedding, None, {}),
    ],
)
def test_modules_that_stand_for_the_network(kind: Any, reader: Any, expected: dict[str, Any]) -> None:
    """Not the last layer, whose inputs a cut makes narrower."""
    module = kind()
    before, flags = snapshot(module), [m.training for m in module.modules()]
    found = scoring_modules(module, (IMAGES,), reader, largest=2)
    assert list(found.items()) == list(expected.items())  # from the outside in
    assert same_state(snapshot(module), before)
    assert [m.training for m in module.modules()] == flags
    assert hooks(module) == 0


def test_a_single_logit_stands_for_two_classes() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(1))
    net(IMAGES)
    assert scoring_modules(net, (IMAGES,), None, largest=1) == {"": None}
    assert scoring_modules(net, (IMAGES,), None, largest=2) == {}


def trainer_of(make_trainer: Fit, folder: Path | None, checkpoint: Path | None) -> pl.Trainer:
    saving = [] if folder is None else [ModelCheckpoint(folder)]
    trainer = make_trainer(*saving, enable_checkpointing=folder is not None)
    if checkpoint is not None:
        trainer.ckpt_path = checkpoint
    return trainer


def test_the_uncut_network_is_looked_for_in_three_places(make_trainer: Fit, tmp_path: Path) -> None:
    beside, written, own = (tmp_path / name for name in ("beside", "written", "own"))
    trainer = trainer_of(make_trainer, own, beside / "last.ckpt")
    places = [folder / "uncut-epoch=3.ckpt" for folder in (beside, written, own)]
    with pytest.raises(FileNotFoundError) as caught:
        find_uncut(trainer, str(places[1]), 3)
    assert ", ".join(map(str, places)) in str(caught.value)
    for place in reversed(places):
        place.parent.mkdir()
        torch.save(conv_net().state_dict(), place)
        assert find_uncut(trainer, str(places[1]), 3) == place


def test_there_may_be_no_place_at_all(make_trainer: Fit) -> None:
    with pytest.raises(FileNotFoundError, match="looked for at no place"):
        find_uncut(trainer_of(make_trainer, None, None), None, 0)
