"""Rows of inputs times the weight, against the layer itself and against ``functional.unfold``."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.unfold import has_rows, input_rows, output_rows, random_rows

SIDES = {1: (11,), 2: (9, 11), 3: (6, 7, 8)}


def every_row(layer, output):
    channels_last = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    return channels_last.reshape(-1, channels_last.shape[-1])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 5, 2), (3, 4, 6)),
        (nn.Conv2d(4, 5, 3), (3, 4, 6, 5)),
        (nn.Conv3d(4, 5, 1), (3, 4, 3, 4, 2)),
        (nn.Linear(4, 5), (3, 6, 4)),
    ],
)
def test_rows_of_outputs(layer, shape):
    output = layer(torch.randn(shape)).detach()
    expected = every_row(layer, output)
    rows = torch.randperm(len(expected))[:7]
    assert torch.equal(output_rows(layer, output, rows), expected[rows])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def reflected(**options):
    return {"padding": 1, "padding_mode": "reflect", **options}


CONVOLUTIONS = {
    "1d": (nn.Conv1d, 3, {}),
    "1d stride, dilation": (nn.Conv1d, 3, {"stride": 2, "dilation": 2, "padding": 2}),
    "1d causal by hand": (nn.Conv1d, 2, {"padding": 1}),
    "1d replicate": (nn.Conv1d, 5, {"padding": 2, "padding_mode": "replicate"}),
    "pointwise": (nn.Conv2d, 1, {}),
    "pointwise stride": (nn.Conv2d, 1, {"stride": 2, "bias": False}),
    "pointwise padded": (nn.Conv2d, 1, {"padding": 1}),
    "3x3": (nn.Conv2d, 3, {"padding": 1}),
    "3x1": (nn.Conv2d, (3, 1), {"padding": (1, 0), "bias": False}),
    "1x7": (nn.Conv2d, (1, 7), {"padding": (0, 3)}),
    "uneven": (nn.Conv2d, (5, 2), {"stride": (1, 3), "dilation": (2, 1), "padding": (3, 1)}),
    "stride larger than kernel": (nn.Conv2d, 2, {"stride": 4}),
    "even": (nn.Conv2d, 4, {"stride": 2, "padding": 1}),
    "same": (nn.Conv2d, 3, {"padding": "same"}),
    "same, even": (nn.Conv2d, (4, 2), {"padding": "same"}),
    "same, dilated": (nn.Conv2d, 3, {"padding": "same", "dilation": (2, 3)}),
    "same, circular": (nn.Conv2d, (2, 3), {"padding": "same", "padding_mode": "circular"}),
    "valid": (nn.Conv2d, 3, {"padding": "valid"}),
    "reflect": (nn.Conv2d, 3, reflected(padding=(1, 2))),
    "reflect, strided": (nn.Conv2d, 3, reflected(stride=2)),
    "circular": (nn.Conv2d, 3, reflected(padding_mode="circular")),
    "replicate": (nn.Conv2d, (3, 5), reflected(padding=(1, 2), padding_mode="replicate")),
    "as wide as the map": (nn.Conv2d, (9, 11), {}),
    "3d": (nn.Conv3d, 3, {"padding": 1, "bias": False}),
    "3d uneven": (
        nn.Conv3d,
        (1, 2, 3),
        {"stride": (2, 1, 2), "dilation": (1, 3, 1), "padding": (0, 1, 2)},
    ),
    "3d replicate": (nn.Conv3d, (2, 3, 1), {"padding": (1, 1, 0), "padding_mode": "replicate"}),
}


def assert_rows_give_the_output(layer, inputs, rows=None):
    with torch.no_grad():
        output = layer(inputs)
        expected = every_row(layer, output)
        rows = torch.arange(len(expected)) if rows is None else rows
        found = input_rows(layer, inputs, output.shape, rows) @ layer.weight.flatten(1).T
    found = found if layer.bias is None else found + layer.bias
    torch.testing.assert_close(found, expected[rows], rtol=1e-10, atol=1e-10)


def maps(dims, channels=4, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *SIDES[dims], generator=generator, dtype=torch.float64)


# torch warns that it copies what it pads on one side more than on the other.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("chosen", [True, False], ids=["chosen rows", "all rows"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_times_weight_are_what_a_convolution_gives(name, chosen):
    make, kernel, options = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = make(4, 5, kernel, **options).double()
    inputs = maps(len(layer.kernel_size))
    rows = random_rows(layer, layer(inputs), 3, seeded(0)).flip(0) if chosen else None
    assert_rows_give_the_output(layer, inputs, rows)


def test_rows_are_those_of_unfold():
    layer = nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)).double()
    inputs = maps(2)
    expected = functional.unfold(inputs, (3, 2), padding=(0, 1), stride=(2, 1), dilation=(1, 2))
    expected = expected.transpose(1, 2).flatten(0, 1)
    shape = layer(inputs).shape
    assert torch.equal(input_rows(layer, inputs, shape, torch.arange(len(expected))), expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_memory_format_does_not_matter(kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 5, kernel, padding=kernel // 2).double().to(memory_format=torch.channels_last)
    assert_rows_give_the_output(layer, maps(2).to(memory_format=torch.channels_last))
    assert_rows_give_the_output(layer, maps(2, channels=8)[:, ::2])


@pytest.mark.parametrize("shape", [(7, 4), (3, 6, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(4, 5, bias=bias).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    assert_rows_give_the_output(layer, inputs)
    assert_rows_give_the_output(layer, inputs, random_rows(layer, layer(inputs), 2, seeded(0)))


def test_geometry_that_was_changed_after_construction():
    """As networks for segmentation do it to a backbone that was made for classification."""
    layer = nn.Conv2d(4, 5, 3, stride=2, padding=1).double()
    layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), (2, 2)
    assert_rows_give_the_output(layer, maps(2))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 4), True),
        (nn.Conv1d(3, 4, 1), True),
        (nn.Conv2d(3, 4, 1), True),
        (nn.Conv3d(3, 4, 1), True),
        (nn.Conv2d(1, 4, 1), True),
        (nn.Conv2d(4, 4, 3, groups=4), False),
        (nn.ConvTranspose1d(3, 4, 1), False),
        (nn.ConvTranspose2d(3, 4, 1), False),
        (nn.ConvTranspose3d(3, 4, 1), False),
        (nn.BatchNorm2d(3), False),
        (nn.PReLU(3), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_layers_have_rows(layer, expected):
    assert has_rows(layer) is expected


@pytest.mark.parametrize(
    ("layer", "output", "positions"),
    [
        (nn.Conv2d(1, 2, 1), torch.zeros(5, 2, 6, 7), 42),
        (nn.Conv1d(1, 2, 1), torch.zeros(5, 2, 30), 30),
        (nn.Linear(1, 2), torch.zeros(5, 3, 8, 2), 24),
    ],
    ids=["conv2d", "conv1d", "linear"],
)
class TestRandomRows:
    def test_as_many_distinct_rows_of_every_sample(self, layer, output, positions):
        rows = random_rows(layer, output, 9, seeded(0))
        assert rows.dtype == torch.int64
        assert len(rows.unique()) == len(rows) == 5 * 9
        assert (rows // positions).bincount(minlength=5).tolist() == [9] * 5

    def test_samples_differ_and_so_do_seeds(self, layer, output, positions):
        rows = random_rows(layer, output, 9, seeded(0))
        by_sample = {tuple(sorted(sample.tolist())) for sample in (rows % positions).view(5, 9)}
        assert len(by_sample) == 5
        assert torch.equal(rows, random_rows(layer, output, 9, seeded(0)))
        assert not torch.equal(rows, random_rows(layer, output, 9, seeded(1)))

    def test_all_rows_where_there_are_no_more(self, layer, output, positions):
        for count in (positions, positions + 1):
            rows = random_rows(layer, output, count, seeded(0))
            assert rows.tolist() == list(range(5 * positions))

    def test_the_random_state_of_others_stays(self, layer, output, positions):
        before = torch.get_rng_state()
        random_rows(layer, output, 9, seeded(0))
        assert torch.equal(torch.get_rng_state(), before)


def test_every_position_is_as_likely_as_any_other():
    rows = random_rows(nn.Conv2d(1, 1, 1), torch.zeros(4000, 1, 2, 4), 2, seeded(3)) % 8
    # 1000 each but for chance, of which the standard deviation is 27.
    assert (rows.bincount(minlength=8) - 1000).abs().max() < 120
