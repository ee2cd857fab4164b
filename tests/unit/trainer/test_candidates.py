"""What looks like the network, and is told apart from what does not."""

import copy
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.fits import Classifier, conv_net
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from acsp_lightning import PruningSettings
from acsp_lightning.trainer.candidates import find_copies, warn_of_lookalikes, without_copies

NOTHING = PruningSettings()


class Holder(pl.Callback):
    def __init__(self, held: Any) -> None:
        self.held = held


def trainer_of(module: nn.Module, *callbacks: pl.Callback) -> Any:
    return SimpleNamespace(lightning_module=module, callbacks=list(callbacks))


def layers_of(module: nn.Module, prefix: str) -> set[str]:
    return {name for name, _ in module.named_modules() if name.startswith(prefix)}


def test_wholes_and_parts_are_found_with_their_places() -> None:
    module = Classifier()
    whole, part, wrapped = copy.deepcopy(module), copy.deepcopy(module.net), AveragedModel(module.net)
    found = find_copies(trainer_of(module, Holder(whole), Holder([part]), Holder(wrapped)), NOTHING)
    assert [(c.name, c.module, c.prefix, c.is_certain) for c in found] == [
        ("Holder.held", whole, "", False),
        ("Holder 2.held[0]", part, "net.", False),
        ("Holder 3.held.module", wrapped.module, "net.", False),
    ]


def test_a_submodule_is_one_if_forward_never_calls_it() -> None:
    module = Classifier()
    module.average = copy.deepcopy(module.net)
    trainer, idle = trainer_of(module), layers_of(module, "average.")
    assert find_copies(trainer, NOTHING) == []
    (found,) = find_copies(trainer, NOTHING, idle)
    assert (found.name, found.module) == ("Classifier.average", module.average)
    assert without_copies(module, ["net.fc1", "average.fc1"], [found]) == ("net.fc1",)


def test_what_is_named_and_what_lightning_averages_is_certain_and_comes_once() -> None:
    module, average = Classifier(), EMAWeightAveraging()
    average._average_model = AveragedModel(module)
    named = copy.deepcopy(module.net)
    settings = PruningSettings(copies=lambda _: [named, named])
    found = find_copies(trainer_of(module, Holder(named), average), settings)
    assert [(c.name, c.module, c.is_certain) for c in found] == [
        ("EMAWeightAveraging", average._average_model.module, True),
        ("copies[0]", named, True),
    ]


def test_what_is_named_and_no_copy_is_refused() -> None:
    settings = PruningSettings(copies=lambda _: [nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="copies returned a Linear whose parameters do not have"):
        find_copies(trainer_of(Classifier()), settings)


def test_single_layers_and_other_shapes_are_no_copies() -> None:
    module, wider = Classifier(), conv_net()
    wider.fc2 = nn.Linear(10, 7)
    callbacks = [Holder(copy.deepcopy(module.net.fc1)), Holder(wider)]
    trainer = trainer_of(module, *callbacks)
    assert find_copies(trainer, NOTHING) == []
    with pytest.warns(UserWarning, match="Holder holds a Sequential with the layers of the network in"):
        warn_of_lookalikes(trainer, [])


def test_a_copy_that_stays_whole_is_no_lookalike() -> None:
    module = Classifier()
    trainer = trainer_of(module, Holder(copy.deepcopy(module.net).requires_grad_(False)))
    warn_of_lookalikes(trainer, find_copies(trainer, NOTHING))  # warnings are errors
