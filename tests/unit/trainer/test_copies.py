"""Averages are told from teachers and twins, in all processes and after a resume alike."""

import copy
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.captured import IMAGES
from helpers.fits import Classifier, conv_net
from torch import nn

from acsp_lightning import PruningSettings
from acsp_lightning.trainer import copies as module_of_copies
from acsp_lightning.trainer.copies import Copies, CopyRecord, Role, merged, warn_of_doubtful

FLAGS = ("is_certain", "is_frozen", "has_changed", "has_learned")


class Holder(pl.Callback):
    """Holds a copy of the network, in training or frozen."""

    def __init__(self, module: Classifier, frozen: bool = False) -> None:
        self.held = copy.deepcopy(module.net).requires_grad_(not frozen)


def trainer_of(module: nn.Module, *callbacks: pl.Callback, optimizers: Any = ()) -> Any:
    return SimpleNamespace(
        lightning_module=module, callbacks=list(callbacks), optimizers=optimizers, current_epoch=0
    )


def begun(trainer: Any, records: Any = ()) -> Copies:
    copies = Copies()
    copies.resume(records)
    copies.begin(trainer, PruningSettings())
    return copies


def move(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)


def names(copies: Any) -> list[str]:
    return [found.name for found in copies]


def record(**flags: bool) -> CopyRecord:
    return CopyRecord("Holder.held", "net.", **{**dict.fromkeys(FLAGS, False), **flags})


@pytest.mark.parametrize("flags", list(product([False, True], repeat=4)))
def test_what_a_copy_is(flags: tuple[bool, ...]) -> None:
    certain, frozen, changed, learned = flags
    expected = {
        (False, False): Role.AVERAGE,
        (True, False): Role.AVERAGE if changed else Role.TEACHER,
        (False, True): Role.TWIN,
        (True, True): Role.TWIN,  # it was, until it was frozen
    }[frozen, learned]
    found = record(**dict(zip(FLAGS, flags, strict=True))).role
    assert found is (Role.AVERAGE if certain else expected)


def test_what_one_process_has_seen_counts_for_all() -> None:
    here = record(is_frozen=True, has_learned=True)
    there, other = record(has_changed=True), replace(here, name="Other.held")
    together = record(has_changed=True, has_learned=True)
    assert merged([here, other, there]) == {here.key: together, other.key: other}


def test_before_a_fit_begins_there_are_none() -> None:
    copies = Copies()
    copies.note_gradients()
    assert copies.found() == copies.followed() == copies.agreed() == copies.doubtful() == []
    assert list(copies.records()) == []


def test_a_frozen_copy_is_a_teacher_until_it_changes() -> None:
    module = Classifier()
    holder = Holder(module, frozen=True)
    copies = begun(trainer_of(module, holder))
    assert names(copies.found()) == names(copies.doubtful()) == ["Holder.held"]
    assert copies.followed() == copies.agreed() == []
    with pytest.warns(UserWarning, match=r"Holder\.held is a frozen Sequential .* stays whole"):
        warn_of_doubtful(copies.doubtful())
    move(holder.held)
    assert names(copies.followed()) == names(copies.agreed()) == ["Holder.held"]
    assert copies.doubtful() == []


def test_a_teacher_with_weights_of_its_own_is_not_doubtful() -> None:
    module = Classifier()
    holder = Holder(module, frozen=True)
    move(holder.held)
    copies = begun(trainer_of(module, holder))
    assert copies.doubtful() == copies.followed() == []


def test_a_gradient_that_is_gone_is_remembered() -> None:
    module = Classifier()
    holder, average = Holder(module), Holder(module)
    copies = begun(trainer_of(module, holder, average))
    copies.note_gradients()
    assert names(copies.followed()) == ["Holder.held", "Holder 2.held"]
    holder.held(IMAGES).sum().backward()
    copies.note_gradients()
    holder.held.zero_grad()
    assert names(copies.followed()) == names(copies.agreed()) == ["Holder 2.held"]


def test_steps_of_an_optimizer_tell_a_twin_too() -> None:
    module = Classifier()
    holder = Holder(module)
    optimizer = torch.optim.Adam(holder.held.parameters())
    copies = begun(trainer_of(module, holder, optimizers=[optimizer]))
    holder.held(IMAGES).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert copies.followed() == []


def test_copies_are_looked_for_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    find = module_of_copies.find_copies

    def counted(*arguments: Any) -> Any:
        looks.append(1)
        return find(*arguments)

    monkeypatch.setattr(module_of_copies, "find_copies", counted)
    module = Classifier()
    trainer = trainer_of(module)
    copies = begun(trainer)
    looks.clear()
    for _ in range(5):
        copies.note_gradients()
    assert len(looks) == 1
    # One that has come since is seen in the next.
    late = Holder(module)
    trainer.callbacks.append(late)
    trainer.current_epoch = 1
    late.held(IMAGES).sum().backward()
    copies.note_gradients()
    late.held.zero_grad()
    assert len(looks) == 2
    assert copies.followed() == []


def test_a_resumed_fit_knows_what_was_seen_before() -> None:
    module = Classifier()
    average, twin, teacher = Holder(module, frozen=True), Holder(module), Holder(module, frozen=True)
    trainer = trainer_of(module, average, twin, teacher)
    before = begun(trainer)
    move(average.held)
    twin.held(IMAGES).sum().backward()
    before.note_gradients()
    twin.held.zero_grad()
    after = begun(trainer, before.records())
    assert names(after.found()) == ["Holder.held", "Holder 2.held", "Holder 3.held"]
    assert names(after.followed()) == ["Holder.held"]
    move(teacher.held)  # not a teacher after all
    assert names(after.followed()) == ["Holder.held", "Holder 3.held"]


def test_a_teacher_that_a_cut_left_whole_is_one_after_a_resume_and_a_roll_back() -> None:
    module = Classifier()
    trainer = trainer_of(module, Holder(module, frozen=True))
    records = begun(trainer).records()
    whole, module.net = module.net, conv_net()[:6]
    after = begun(trainer, records)
    assert after.found() == []
    module.net = whole
    assert names(after.found()) == ["Holder.held"]
    assert after.followed() == []


def test_processes_follow_the_same_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here an average is still, and another process has no such copies as the second and the third."""
    module = Classifier()
    holders = [Holder(module, frozen=True), Holder(module), Holder(module)]
    copies = begun(trainer_of(module, *holders))
    elsewhere = [
        record(is_frozen=True, has_changed=True),
        replace(record(has_learned=True), name="Holder 2.held"),
        replace(record(), name="Only there.held"),
    ]
    monkeypatch.setattr(module_of_copies, "run_on_all_ranks", lambda work: [work(), elsewhere])
    found = copies.agreed()
    assert [(one.name, one.is_everywhere) for one in found] == [
        ("Holder.held", True),
        ("Holder 3.held", False),
    ]
    assert names(copies.followed()) == names(found)  # a snapshot has the same
