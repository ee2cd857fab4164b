"""Where callbacks and modules hold what belongs to a network."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.fits import Classifier
from torch import nn

from acsp_lightning.trainer.holders import held_containers, held_modules, named_holders


class Wrapper:
    """An object of a user's own."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


class Holder(pl.Callback):
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


def test_holders_of_one_type_have_names_of_their_own() -> None:
    module, first, other, second = Classifier(), Holder(), pl.Callback(), Holder()
    trainer: Any = SimpleNamespace(lightning_module=module, callbacks=[first, other, second])
    found = named_holders(trainer)
    assert list(found) == ["Classifier", "Holder", "Callback", "Holder 2"]
    assert [*found.values()] == [module, first, other, second]


def test_modules_have_the_places_at_which_they_are_held() -> None:
    a, b, c, d = (nn.Linear(1, 1) for _ in range(4))
    holder = Holder(own=a, listed=[1, b], named={"x": c}, inner=Wrapper(own=d, deeper=Wrapper(own=a)))
    assert list(held_modules(holder)) == [
        ("own", a),
        ("listed[1]", b),
        ("named[x]", c),
        ("inner.own", d),
    ]


def test_submodules_are_held_by_their_names() -> None:
    holder = nn.Module()
    holder.part = nn.Linear(1, 1)
    holder.hidden = [nn.Linear(1, 1)]
    assert dict(held_modules(holder)) == {"hidden[0]": holder.hidden[0], "part": holder.part}


def test_what_hyperparameters_and_a_fit_hold_is_passed_over() -> None:
    module = Classifier()
    module._hparams = {"net": module.net}
    holder = Holder(module=module)
    assert [name for name, _ in held_modules(module)] == ["net"]
    assert [name for name, _ in held_modules(holder)] == ["module"]
    module._trainer = object()  # type: ignore[assignment]
    assert list(held_modules(holder)) == []


def test_containers_are_lists_and_dicts_one_level_down() -> None:
    shadow, names, state = [torch.ones(1)], {"a": 1}, {"b": torch.ones(1)}
    holder = Holder(own=names, inner=Wrapper(shadow=shadow, deeper=Wrapper(state=state)), number=3)
    assert list(held_containers(holder)) == [("own", names), ("inner.shadow", shadow)]
