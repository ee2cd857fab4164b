import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.structure.branches import Branch
from acsp_lightning.structure.store import Store
from acsp_lightning.structure.targets import TargetPart, Targets, join_parts

GENERATOR = torch.Generator().manual_seed(0)
CONV = nn.Conv2d(3, 4, 1).double().requires_grad_(False)


def given(samples: int) -> Tensor:
    return torch.randn(samples, 3, 2, 2, generator=GENERATOR, dtype=torch.float64)


def see(targets: Targets, layer: str, x: Tensor) -> Tensor:
    output: Tensor = CONV(x)
    targets.see(Branch(layer, CONV, output._version), x, output)
    return output


@pytest.mark.parametrize(("first", "step"), [(0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("samples", [5, 6])
def test_some_of_the_samples(samples: int, first: int, step: int) -> None:
    output = torch.randn(samples, 4, 3, 3)
    rows = torch.randperm(9 * samples)[:20].sort().values
    flat = output.movedim(1, -1).flatten(0, -2)
    part = TargetPart(output.shape, rows, Store().keep(flat[rows])).thinned(first, step)
    left = output[first::step].movedim(1, -1).flatten(0, -2)
    assert part.shape == output[first::step].shape
    assert torch.equal(part.outputs, left[part.rows])
    again = part.thinned(0, 2)
    left = output[first :: 2 * step].movedim(1, -1).flatten(0, -2)
    assert torch.equal(again.outputs, left[again.rows])


def test_parts_of_several_batches_as_one() -> None:
    output = torch.randn(7, 4, 3, 3)
    flat, parts = output.movedim(1, -1).flatten(0, -2), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        rows = torch.randperm(9 * (end - start))[:5].sort().values
        shape = torch.Size((end - start, 4, 3, 3))
        parts.append(TargetPart(shape, rows, Store().keep(flat[9 * start :][rows])))
    part = join_parts(parts)
    assert part.shape == output.shape
    assert torch.equal(part.outputs, flat[part.rows])
    again = part.thinned(1, 2)
    assert torch.equal(again.outputs, output[1::2].movedim(1, -1).flatten(0, -2)[again.rows])
    assert 0 < len(again.rows) < len(part.rows) == 15


def test_outputs_of_all_batches_and_their_power() -> None:
    targets, outputs = Targets(32, seed=0), []
    for samples in (3, 5):
        outputs.append(see(targets, "conv", given(samples)))
        targets.close()
    target = targets.by_layer["conv"]
    whole = torch.cat(outputs).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(torch.cat([part.outputs for part in target.parts]), whole)
    assert (target.samples, target.num_rows) == (8, 32)
    assert target.power == pytest.approx(float(whole.var(0, correction=0).sum()))
    assert not target.summed


def test_a_layer_that_some_batches_pass_by_has_no_target() -> None:
    targets = Targets(32, seed=0)
    for layers in (("always", "sometimes"), ("always",)):
        for layer in layers:
            see(targets, layer, given(2))
        targets.close()
    assert set(targets.by_layer) == {"always"}


def test_a_layer_that_a_batch_calls_twice_has_no_target() -> None:
    """Whichever call was compared, the other would be fitted to it."""
    targets = Targets(32, seed=0)
    for layers in (("once", "twice"), ("twice", "once", "twice")):
        for layer in layers:
            see(targets, layer, given(2))
        targets.close()
    assert set(targets.by_layer) == {"once"}


def test_a_layer_that_is_added_to_something_in_some_batches_has_no_target() -> None:
    targets = Targets(32, seed=0)
    for added in (True, False):
        output = see(targets, "conv", given(2))
        if added:
            targets.add(Branch("conv", CONV, output._version), output, torch.ones_like(output))
        targets.close()
    assert not targets.by_layer


def test_what_is_added_counts_once() -> None:
    targets = Targets(32, seed=0)
    output = see(targets, "conv", given(2))
    for value in (1.0, 5.0):
        targets.add(Branch("conv", CONV, output._version), output, torch.full_like(output, value))
    targets.close()
    target = targets.by_layer["conv"]
    assert target.summed
    torch.testing.assert_close(target.parts[0].outputs, output.movedim(1, -1).flatten(0, -2) + 1)


def test_a_layer_that_is_no_product_has_no_target() -> None:
    targets, x = Targets(32, seed=0), given(2)
    targets.see(Branch("conv", CONV, 0), x, 3 * CONV(x))
    targets.close()
    assert not targets.by_layer
