"""Tensors that stand for parameters, and are cut as these are."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, halved, widths
from torch import Tensor, nn

from acsp_lightning import apply_plan
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.trainer.held_tensors import held_tensors, slice_held


class Holder(pl.Callback):
    def __init__(self, held: Any) -> None:
        self.held = held


def trainer_of(module: nn.Module, *callbacks: pl.Callback) -> Any:
    return SimpleNamespace(lightning_module=module, callbacks=list(callbacks))


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


FORMS = {
    "net.bn2.weight": lambda m: cloned(dict(m.named_parameters())),
    "bn2.weight": lambda m: cloned(dict(m.net.named_parameters())),
    "net.bn2.bias": lambda m: cloned(m.state_dict()),
    4: lambda m: [p.detach().clone() for p in m.parameters()],
}
IDS = ["dict by name", "dict of a child", "state dict", "list"]


@pytest.mark.parametrize("key", FORMS, ids=IDS)
def test_tensors_are_found_and_cut_as_what_they_stand_for(key: Any) -> None:
    """In one place the network was corrected after the cut."""
    module = Classifier()
    holder = Holder(FORMS[key](module))
    places = held_tensors(trainer_of(module, holder))
    assert len(places) == len(holder.held)
    groups, kept = trace_groups(module, (torch.ones(2, 1, 6, 6),)).groups, [0, 2, 3, 7]
    buffers = {id(b): [(0, torch.tensor(kept))] for b in module.net.bn1.buffers() if b.ndim}
    sliced = apply_plan(module, build_plan(groups, {"net.conv1": kept}))
    assert widths(module) == halved("conv1")
    corrected = module.net.bn2.bias if key == "net.bn2.bias" else module.net.bn2.weight
    slice_held(places, sliced, {id(corrected): torch.full((6,), 2.0)}, buffers)
    expected = FORMS[key](module)
    expected[key] = expected[key] + 2.0
    for place in expected if isinstance(expected, dict) else range(len(expected)):
        assert torch.equal(holder.held[place], expected[place])


def test_what_stands_for_parameters_and_is_no_copy_of_them_keeps_its_kind() -> None:
    module = Classifier()
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in module.named_parameters()}
    leaves = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    corrected = module.net.bn2.weight
    for held in (masks, leaves):
        before = dict(held)
        places = held_tensors(trainer_of(module, Holder(held)))
        slice_held(places, (), {id(corrected): torch.full_like(corrected, 2.0)}, {})
        assert all(held[name] is before[name] for name in held if name != "net.bn2.weight")
    assert not any(mask.any() for mask in masks.values())
    assert leaves["net.bn2.weight"].is_leaf
    assert leaves["net.bn2.weight"].requires_grad
    assert torch.equal(leaves["net.bn2.weight"], corrected + 2.0)


@pytest.mark.parametrize(
    "held",
    [
        lambda m: {**cloned(dict(m.named_parameters())), "extra": torch.ones(1)},
        lambda m: {n: torch.ones(1) for n, _ in m.named_parameters()},
        lambda m: [p.detach().clone() for p in m.parameters()][1:],
        lambda m: list(m.parameters()),
        lambda _: {},
        lambda _: [1, 2],
    ],
    ids=["another name", "other shapes", "too short", "the parameters themselves", "empty", "numbers"],
)
def test_what_does_not_stand_for_parameters_is_passed_over(held: Any) -> None:
    module = Classifier()
    assert held_tensors(trainer_of(module, Holder(held(module)))) == []
