"""A cut between two epochs of a fit, and the way back, against cutting the network by itself."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.captured import IMAGES
from helpers.fits import Classifier, Fit, same_state, snapshot, val_loader

from acsp_lightning import PruningPlan, PruningSettings, SelectionConfig, apply_plan, pipeline
from acsp_lightning.trainer.candidates import NetworkCopy
from acsp_lightning.trainer.copies import Copies
from acsp_lightning.trainer.cut import FitSite

SETTINGS = PruningSettings(selection=SelectionConfig(keep=0.5), recovery="none")


class AtEpoch(pl.Callback):
    """Does ``work(trainer)`` at the start of the second epoch; stands for the pruning callback."""

    def __init__(self, work: Callable[[pl.Trainer], None]) -> None:
        self.work = work
        self.done = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            self.work(trainer)
            self.done = True


@pytest.fixture
def between_epochs(fit: Fit) -> Callable[[Callable[[pl.Trainer], None]], Classifier]:
    def run(work: Callable[[pl.Trainer], None]) -> Classifier:
        module, callback = Classifier(), AtEpoch(work)
        fit(module, [callback])
        assert callback.done
        return module

    return run


def decided(site: FitSite) -> tuple[Any, Any]:
    example, captured = pipeline.capture_network(site.network, list(val_loader()), SETTINGS)
    return pipeline.decide_cut(site, captured, SETTINGS, example)


def state_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        copy.deepcopy(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]
    ]


def test_the_network_of_a_fit_is_cut_like_any_other(between_epochs: Any) -> None:
    def work(trainer: pl.Trainer) -> None:
        site = FitSite(trainer, SETTINGS)
        proposal, recovery = decided(site)
        expected = site.uncut()
        apply_plan(expected, proposal.plan)
        assert not site.is_cut
        assert site.prune(proposal, recovery) is trainer.lightning_module
        assert site.is_cut
        assert same_state(snapshot(trainer.lightning_module), snapshot(expected))
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:
            assert [id(p) for p in group["params"]] == [
                id(p) for p in trainer.lightning_module.parameters()
            ]
        for parameter in trainer.lightning_module.parameters():
            assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape

    module = between_epochs(work)
    assert module.steps == 12


def test_back_to_the_bit(between_epochs: Any) -> None:
    def work(trainer: pl.Trainer) -> None:
        site, module, (optimizer,) = (
            FitSite(trainer, SETTINGS),
            trainer.lightning_module,
            trainer.optimizers,
        )
        weights, state = snapshot(module), state_of(optimizer)
        before = site.snapshot()
        site.prune(*decided(site))
        module(IMAGES).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        site.roll_back(before)
        assert same_state(snapshot(module), weights)
        for found, expected in zip(state_of(optimizer), state, strict=True):
            assert torch.equal(found["momentum_buffer"], expected["momentum_buffer"])

    between_epochs(work)


def test_all_is_decided_before_anything_is_changed(between_epochs: Any) -> None:
    seen: list[bool] = []

    def work(trainer: pl.Trainer) -> None:
        weights = snapshot(trainer.lightning_module)

        def before_cut() -> None:
            seen.append(same_state(snapshot(trainer.lightning_module), weights))

        site = FitSite(trainer, SETTINGS, before_cut=before_cut)
        site.prune(*decided(site))

    between_epochs(work)
    assert seen == [True]


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_that_some_processes_lack_is_corrected_as_the_network_was(
    between_epochs: Any, whole: bool
) -> None:
    """Only one that all have may wait for the refit of the first."""

    class Followed(Copies):
        def __init__(self, copied: NetworkCopy) -> None:
            super().__init__()
            self.copied = copied

        def agreed(self) -> list[NetworkCopy]:
            return [self.copied]

    def work(trainer: pl.Trainer) -> None:
        settings, module = PruningSettings(selection=SelectionConfig(keep=0.5)), trainer.lightning_module
        network = FitSite(trainer, settings).uncut() if whole else copy.deepcopy(module.net)
        copied = NetworkCopy("Holder.held", network, "" if whole else "net.", is_everywhere=False)
        site = FitSite(trainer, settings, Followed(copied))
        example, captured = pipeline.capture_network(module, list(val_loader()), settings)
        site.prune(*pipeline.decide_cut(site, captured, settings, example))
        live = dict(module.named_parameters())
        for name, parameter in network.named_parameters():
            if "bn" not in name:  # its own statistics stay, and its own scale with them
                torch.testing.assert_close(parameter, live[f"{copied.prefix}{name}"])
        (images, _), original = next(iter(val_loader())), copy.deepcopy(module if whole else module.net)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(images), original.eval()(images))

    between_epochs(work)


def test_modules_and_callbacks_that_ask_are_told_of_both_ways(fit: Fit) -> None:
    heard: list[tuple[str, bool, int]] = []

    class Told(Classifier):
        def on_pruned(self, plan: PruningPlan | None, sliced: Any) -> None:
            heard.append(("module", plan is None, len(sliced)))

    class Hearing(AtEpoch):
        def on_pruned(self, trainer: Any, pl_module: Any, plan: PruningPlan | None, sliced: Any) -> None:
            heard.append(("callback", plan is None, len(sliced)))

    def work(trainer: pl.Trainer) -> None:
        site = FitSite(trainer, SETTINGS)
        before = site.snapshot()
        site.prune(*decided(site))
        site.roll_back(before)

    fit(Told(), [Hearing(work)])
    smaller = heard[0][2]
    assert smaller > 5
    assert heard == [
        ("module", False, smaller),
        ("callback", False, smaller),
        ("module", True, 0),
        ("callback", True, 0),
    ]


def test_batches_of_the_place_are_those_of_the_validation(between_epochs: Any) -> None:
    def work(trainer: pl.Trainer) -> None:
        found = list(FitSite(trainer, PruningSettings(max_batches=2)).batches())
        assert torch.equal(torch.cat([images for images, _ in found]), IMAGES[:12])

    between_epochs(work)
