"""What is kept of the network before a cut."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.captured import IMAGES, captured
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    conv_net,
    same_state,
    snapshot,
    widths,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from acsp_lightning import apply_plan, load_pruned
from acsp_lightning.structure.optimizer import slice_optimizer_state
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.trainer.snapshot import restore_snapshot, take_snapshot


def test_the_last_uncut_network_is_kept(fit: Fit, tmp_path: Path) -> None:
    probe, save = Probe(), ModelCheckpoint(tmp_path / "files", filename="{epoch}")
    fit(Classifier(), [callback(0, 1), probe, save], enable_checkpointing=True)
    for epoch, expected in ((0, WIDTHS), (1, ALL_HALVED)):
        module = load_pruned(Classifier(), tmp_path / "files" / f"uncut-epoch={epoch}.ckpt")
        assert widths(module) == expected
        assert same_state(snapshot(module), probe.states["validation_end", epoch])


def test_no_file_without_a_checkpoint_callback(fit: Fit, tmp_path: Path) -> None:
    fit(Classifier(), [callback()])
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_a_network_goes_back_and_trains_on_as_if_nothing_had_been(optimizer: Any) -> None:
    """Cut, trained and put back, beside a copy of the network that stayed."""

    def train(network: nn.Module, own: torch.optim.Optimizer, steps: int) -> None:
        def closure() -> Tensor:
            own.zero_grad()
            loss = network(IMAGES).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            own.step(closure)

    network = conv_net()
    own = optimizer(network.parameters(), lr=0.01)
    train(network, own, 2)
    stayed = copy.deepcopy(network)
    other = optimizer(stayed.parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(own.state_dict()))
    before = take_snapshot(network, (), [own])
    groups, _ = captured(copy.deepcopy(network))
    plan = build_plan(groups.values(), {name: range(0, g.width, 2) for name, g in groups.items()})
    slice_optimizer_state(own, apply_plan(network, plan))
    train(network, own, 1)
    restore_snapshot(before, network, (), [own])
    assert same_state(snapshot(network), snapshot(stayed))
    train(network, own, 2)
    train(stayed, other, 2)
    assert same_state(snapshot(network), snapshot(stayed))


def test_an_optimizer_that_had_not_stepped_has_no_state_again() -> None:
    network = conv_net()
    optimizer = torch.optim.Adam(network.parameters())
    before = take_snapshot(network, (), [optimizer])
    network(IMAGES).square().mean().backward()
    optimizer.step()
    assert optimizer.state
    restore_snapshot(before, network, (), [optimizer])
    assert not optimizer.state
