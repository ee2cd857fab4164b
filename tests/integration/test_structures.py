"""Every structure of networks that people use, cut at several depths: exact, trainable, loadable."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.networks import Case
from helpers.normed import NORMED
from helpers.oracle import assert_cut_is_masked, built, inputs_of, offered, random_plan
from helpers.structures import STRUCTURES as ORDINARY
from torch.nn import functional

from acsp_lightning import SelectionConfig, apply_plan, load_pruned, preview
from acsp_lightning.measure.complexity import measure_complexity
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.optimizer import slice_optimizer_state
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.refit import prepare_refit, refit_layers

STRUCTURES = ORDINARY | NORMED
DEPTHS = range(4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_offered(name: str) -> None:
    case = STRUCTURES[name]
    tracing = offered(built(case), inputs_of(case), residual=case.residual, norms=case.norms)
    assert tuple(group.name for group in tracing.groups) == case.cut, dict(tracing.left_whole)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_cut_is_the_masked_network_and_goes_on(name: str, depth: int, tmp_path: Path) -> None:
    case = STRUCTURES[name]
    model, inputs = built(case), inputs_of(case)
    fresh = copy.deepcopy(model)
    plan = random_plan(offered(model, inputs, residual=case.residual, norms=case.norms).groups, depth)
    expected = assert_cut_is_masked(model, plan, inputs)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    step(model, inputs, optimizer)
    assert slice_optimizer_state(optimizer, apply_plan(model, plan)) == ()
    step(model, inputs, optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape

    torch.save(expected.state_dict(), tmp_path / "cut.pt")
    load_pruned(fresh, tmp_path / "cut.pt")
    with torch.no_grad():
        assert torch.equal(fresh(*inputs), expected(*inputs))
    again = offered(fresh, inputs, residual=case.residual, norms=case.norms).groups
    if again:  # cut once more, and loaded from what was cut twice
        twice = assert_cut_is_masked(fresh, random_plan(again, depth), inputs)
        torch.save(twice.state_dict(), tmp_path / "twice.pt")
        loaded = load_pruned(built(case), tmp_path / "twice.pt")
        with torch.no_grad():
            assert torch.equal(loaded(*inputs), twice(*inputs))


def step(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], optimizer: torch.optim.SGD) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(*inputs), torch.tensor([0, 1])).backward()
    optimizer.step()


def flops_of(case: Case, depth: int) -> tuple[float, int]:
    """FLOPs after a cut as the model of costs has them, and as they are counted."""
    model, inputs = built(case), inputs_of(case, batch=1)
    groups = offered(model, inputs, residual=case.residual, norms=case.norms).groups
    costs = FlopsModel(groups, measure_complexity(model, inputs).by_layer)
    widths = {group.name: 1 + (depth + place) % (group.width - 1) for place, group in enumerate(groups)}
    apply_plan(model, build_plan(groups, {name: range(width) for name, width in widths.items()}))
    return costs.total(widths), sum(measure_complexity(model, inputs).by_layer.values())


@pytest.mark.parametrize("name", [n for n in STRUCTURES if "group" in n or "shares" in n])
def test_the_costs_of_groups_are_exact(name: str) -> None:
    for depth in DEPTHS:
        expected, found = flops_of(STRUCTURES[name], depth)
        assert expected == pytest.approx(found)


@pytest.mark.parametrize("name", STRUCTURES)
def test_consumers_are_refitted(name: str) -> None:
    """Nearer to the uncut network than the cut alone, on the samples that they are fitted to."""
    case = STRUCTURES[name]
    model, inputs = built(case), inputs_of(case, batch=16)
    groups = offered(model, inputs, residual=case.residual, norms=case.norms).groups
    kept = {group.name: range(-(-3 * group.width // 4)) for group in groups}
    plan = build_plan(groups, kept)
    whole, cut = model(*inputs).detach(), copy.deepcopy(model)
    layers = [side.layer for group in groups for side in group.consumers]
    norms = [norm for group in groups for norm in group.norms]
    refit = prepare_refit(model, layers, [inputs], norms=norms, later=correctable_layers(model))
    apply_plan(cut, plan)
    before = (cut(*inputs) - whole).norm()
    refit_layers(cut, plan, refit)
    assert (cut(*inputs) - whole).norm() < before


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images, torch.arange(16) % 4


BATCHES = [batch(0), batch(1)]


@pytest.mark.parametrize(
    ("selection", "recovery"),
    [
        (SelectionConfig(keep=0.5), "fold"),
        (SelectionConfig(flops=0.7), "least_squares"),
        (SelectionConfig.paper(), "none"),
    ],
    ids=["share", "target", "paper"],
)
@pytest.mark.parametrize("name", STRUCTURES)
def test_channels_are_chosen(name: str, selection: SelectionConfig, recovery: str) -> None:
    case = STRUCTURES[name]
    model = built(case)
    step = preview(
        model, BATCHES, selection, residual=case.residual, norms=case.norms, recovery=recovery
    )
    assert set(step.selections) == set(case.cut)
    if selection.keep is not None:
        for found in step.selections.values():
            assert len(found.kept) == max(2, round(found.width / 2))
    if selection.flops is not None:
        assert step.after.flops <= selection.flops * step.before.flops + 1e-6


@pytest.mark.parametrize("name", ["whole groups", "shares of groups"])
def test_widths_are_rounded_in_channels_of_layers(name: str) -> None:
    """Three units of two are six channels, and even."""
    case = STRUCTURES[name]
    step = preview(built(case), BATCHES, SelectionConfig(keep=0.5), residual=True, round_to=2)
    assert all(after % 2 == 0 for _, after in step.layers.values())
    assert 3 in {len(found.kept) for found in step.selections.values()}


@pytest.mark.filterwarnings("ignore:The network classifies")  # it is not trained
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "name",
    ["whole groups", "shares of groups", "split attention", "layer scale", "split by a list", "ghost"],
)
def test_depths_are_measured(name: str, residual: bool) -> None:
    """What the deepest cut is said to have left is what the network has after it."""
    case = STRUCTURES[name]
    model = built(case)
    batches = [batch(seed) for seed in range(16)]
    measured = preview(model, batches, SelectionConfig(flops=1.0), residual=residual, trade_off=True)
    assert measured.trade_off is not None
    uncut, *_, depth = measured.trade_off.depths
    least = SelectionConfig(flops=depth.flops / uncut.flops)
    step = preview(model, batches, least, residual=residual, trade_off=True)
    assert depth.widths == {group: len(found.kept) for group, found in step.selections.items()}
    assert depth.parameters == step.after.parameters
    apply_plan(model, step.plan)
    found = measure_complexity(model, inputs_of(case, batch=1))
    assert (found.parameters, found.flops) == (step.after.parameters, step.after.flops)
    # Pooling counts at its full width.
    assert step.after.flops <= depth.flops < 1.01 * step.after.flops
