import torch
from torch import nn
from torch.nn.utils import parametrizations

from acsp_lightning.structure.fitted import (
    correctable_layers,
    cut_layers,
    fitted_layers,
    unsliced_parameters,
)
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.structure.surgery import reversible_cut

KEPT = (0, 1, 3, 6)
SIDES = (("0", "out"), ("1", "out"), ("2", "out"), ("3", "in"))
PLAN = PruningPlan(tuple(SideCut(*side, 8, KEPT) for side in SIDES))


def network() -> nn.Sequential:
    layers = [nn.Linear(8, 8), nn.LayerNorm(8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2)]
    return nn.Sequential(*layers)


def test_layers_that_recovery_may_change() -> None:
    model = network()
    assert cut_layers(model, PLAN) == ["1", "3"]
    later = correctable_layers(model)
    assert fitted_layers(model, PLAN, later) == [model[1], model[3], model[0], model[4]]
    assert fitted_layers(model, PruningPlan(), later) == []


def test_what_no_cut_keeps() -> None:
    """Whatever recovery may change has either old data in the cut, or is named."""
    model = network()
    later = correctable_layers(model)
    unsliced = {id(parameter) for parameter in unsliced_parameters(model, PLAN, later)}
    with reversible_cut(model, PLAN) as sliced:
        kept = {id(entry.parameter) for entry in sliced}
    for layer in fitted_layers(model, PLAN, later):
        assert {id(parameter) for parameter in layer.parameters()} <= kept | unsliced


def test_layers_that_belong_to_others_are_left_alone() -> None:
    model = nn.ModuleDict(
        {
            "free": nn.Conv2d(4, 4, 3),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),
            "transposed": nn.ConvTranspose2d(4, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "frozen bias": nn.Linear(4, 4),
            "tied": nn.Linear(4, 4),
            "table": nn.Embedding(4, 4),
            "parametrized": parametrizations.weight_norm(nn.Linear(4, 4)),
            "no bias": nn.Linear(4, 4, bias=False),
        }
    )
    model["frozen bias"].bias.requires_grad_(False)
    model["tied"].weight = model["table"].weight
    model["free again"] = model["free"]
    assert correctable_layers(model) == ["free", "no bias"]


def test_a_layer_that_is_not_trained_at_all() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    assert correctable_layers(model) == [""]
