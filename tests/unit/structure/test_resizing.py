import copy

import pytest
import torch
from helpers.mixed import Mixed, assert_same, cut
from torch import nn

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
            "Layer 'head' .* 7 outputs in the file and 5 in the model.*another number of classes",
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


def chain(hidden: int, classes: int) -> nn.Sequential:
    """A convolution that a linear layer reads after a flatten, and the classes at the end."""
    layers = (nn.Conv2d(3, hidden, 1), nn.Flatten(), nn.Linear(16 * hidden, 2 * hidden), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(2 * hidden, classes))


@pytest.mark.parametrize(("file", "model"), [(10, 12), (12, 10), (10, 8), (2, 20)])
@pytest.mark.parametrize("hidden", [5, 8, 11])
def test_another_number_of_classes_is_refused_whatever_else_was_cut(
    file: int, model: int, hidden: int
) -> None:
    said = f"Layer '4' .* {file} outputs in the file and {model} in the model, .*with {file}\\."
    with pytest.raises(ValueError, match=said):
        restore_structure(chain(8, model), chain(hidden, file).state_dict())
    restore_structure(found := chain(8, file), chain(hidden, file).state_dict())
    assert found[2].in_features == 16 * hidden


def test_another_number_of_classes_beside_a_concatenation(pruned: Mixed) -> None:
    state = dict(pruned.state_dict())
    state["head.weight"], state["head.bias"] = state["head.weight"][:4], state["head.bias"][:4]
    with pytest.raises(ValueError, match=r"Layer 'head' .* 4 outputs in the file and 5 in the model"):
        restore_structure(Mixed(), state)


class HeadFirst(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3)
        self.body = nn.Linear(2, width)


def test_a_last_layer_that_an_earlier_one_reads_may_be_narrower() -> None:
    restore_structure(model := HeadFirst(8), HeadFirst(5).state_dict())
    assert (model.body.out_features, model.head.in_features) == (5, 5)


class Renamed(nn.Module):
    """Takes most of a network over, which it goes on to hold."""

    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.model = chain(width, 7)
        self.encoder = nn.Sequential(*list(self.model.children())[:-1])
        self.head = nn.Linear(2 * width, classes)


def test_layers_with_two_names() -> None:
    restore_structure(model := Renamed(8), Renamed(5).state_dict())
    assert model.model[0] is model.encoder[0]
    assert (model.model[2].in_features, model.head.in_features) == (80, 10)
    with pytest.raises(ValueError, match=r"Layer 'head' .* 4 outputs in the file and 3 in the model"):
        restore_structure(Renamed(8), Renamed(5, classes=4).state_dict())


def test_names_of_one_layer_with_two_shapes_are_refused_and_the_model_untouched() -> None:
    state = {**Renamed(5).state_dict(), "encoder.0.bias": torch.zeros(8)}
    model = Renamed(8)
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'encoder\.0' does not fit: in the model it is 'model\.0'"):
        restore_structure(model, state)
    assert {name: p.shape for name, p in model.named_parameters()} == before


def test_what_is_resized_under_inference_mode_can_be_trained() -> None:
    model, state = chain(8, 3), chain(5, 3).state_dict()
    with torch.inference_mode():
        restore_structure(model, state)
    model.load_state_dict(state)
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in model.parameters())
