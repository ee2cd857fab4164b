import copy

import pytest
import torch
from helpers.mixed import Mixed, assert_same, cut

from acsp_lightning import PruningPlan, apply_plan, restore_structure


@pytest.fixture
def pruned() -> Mixed:
    torch.manual_seed(0)
    model = Mixed().eval()
    cut(model)
    return model


def test_replaying_the_plan_gives_the_same_structure() -> None:
    model = Mixed()
    plan = PruningPlan.from_dict(cut(copy.deepcopy(model)).to_dict())
    apply_plan(model, plan)
    other = Mixed()
    restore_structure(other, model.state_dict())
    other.load_state_dict(model.state_dict())
    assert_same(other, model)


def test_properties_of_parameters_survive(pruned: Mixed) -> None:
    model = Mixed().double()
    model.stem.weight.requires_grad_(False)
    model.stem.weight.decay = False
    restore_structure(model, pruned.state_dict())
    weight = model.stem.weight
    assert (weight.dtype, weight.requires_grad, weight.decay) == (torch.float64, False, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "the file lacks 'head.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), "only the file has 'extra'"),
        (lambda s: s.update({"stem.weight": torch.zeros(4, 3, 5, 5)}), "Layer 'stem' does not fit"),
        (
            lambda s: s.update({"head.weight": torch.zeros(7, s["head.weight"].shape[1])}),
            "Layer 'head' .* 2 more outputs .*another number of classes",
        ),
    ],
)
def test_another_architecture_is_refused_and_the_model_untouched(pruned, change, message) -> None:
    state = dict(pruned.state_dict())
    change(state)
    model = Mixed()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        restore_structure(model, state)
    assert {name: id(p) for name, p in model.named_parameters()} == before
