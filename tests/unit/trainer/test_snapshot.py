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
from acsp_lightning.trainer.candidates import NetworkCopy
from acsp_lightning.trainer.held_tensors import HeldTensor
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


def test_tensors_go_back_by_their_places_and_new_ones_begin_with_the_network() -> None:
    module = Classifier()
    weights = snapshot(module)
    held: dict[str, dict[str, Tensor]] = {
        name: {n: factor * p.detach() for n, p in module.named_parameters()}
        for name, factor in (("first", 2.0), ("second", 3.0), ("late", 4.0))
    }

    def places(*names: str) -> list[HeldTensor]:
        parameters = dict(module.named_parameters())
        return [HeldTensor(f"{n}[{k}]", held[n], k, parameters[k]) for n in names for k in held[n]]

    before = take_snapshot(module, (), [], places("first", "second"))
    for tensors in held.values():
        for name in tensors:
            tensors[name] = torch.zeros(1)
    restore_snapshot(before, module, (), [], places("late", "second"))
    for name, factor in (("second", 3.0), ("late", 1.0)):
        for key, tensor in held[name].items():
            assert torch.equal(tensor, factor * weights[key])
    assert not any(tensor.any() for tensor in held["first"].values())  # nobody holds it any more


def test_copies_go_back_by_their_names_and_new_ones_begin_with_the_network() -> None:
    module = Classifier()
    weights = snapshot(module)
    first, second, late = (copy.deepcopy(module.net) for _ in range(3))
    for factor, network in ((2.0, first), (3.0, second)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(factor)
    averages = [NetworkCopy("first", first, "net."), NetworkCopy("second", second, "net.")]
    expected = {"first": snapshot(first), "second": snapshot(second)}
    before = take_snapshot(module, averages, [])
    groups, _ = captured(copy.deepcopy(module))
    plan = build_plan(groups.values(), {name: range(0, g.width, 2) for name, g in groups.items()})
    own = plan.part(module, "net")
    apply_plan(module, plan)
    for network in (first, second, late):
        apply_plan(network, own)
    restore_snapshot(before, module, [NetworkCopy("late", late, "net."), *reversed(averages)], [])
    assert same_state(snapshot(module), weights)
    assert same_state(snapshot(first), expected["first"])
    assert same_state(snapshot(second), expected["second"])
    assert same_state(snapshot(late), {n.removeprefix("net."): w for n, w in weights.items()})
