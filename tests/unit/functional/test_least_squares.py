import numpy as np
import pytest
import torch
from torch.nn import functional

from acsp_lightning.functional import fold_input, reconstruction_map, refit_weight
from acsp_lightning.functional.least_squares import REFIT_RIDGE, LeastSquares


def samples(size=500, channels=12, rank=8, seed=0):
    """Correlated activations of very different sizes, neither centred nor full rank noise-free."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank, channels, generator=generator, dtype=torch.float64)
    x = hidden @ mixing + 0.3 * torch.randn(size, channels, generator=generator).double() + 0.5
    return x * torch.logspace(-3, 3, channels, dtype=torch.float64)


def test_equals_lstsq_on_the_samples():
    x = samples()
    kept = torch.tensor([0, 3, 4, 7, 11])
    found = reconstruction_map(x.T @ x, kept)
    best = np.linalg.lstsq(x[:, kept].numpy(), x.numpy(), rcond=None)[0]
    # Compare what the maps give, in units of each channel.
    size = x.square().mean(dim=0).sqrt()
    error = (x[:, kept] @ (found - torch.from_numpy(best))).square().mean(dim=0).sqrt() / size
    assert error.max() < 1e-4


def test_kept_channels_come_out_as_themselves():
    x = samples()
    x[:, 1] = x[:, 0]
    kept = torch.tensor([5, 0, 1, 9])
    found = reconstruction_map(x.T @ x, kept)
    assert found.shape == (4, 12)
    assert torch.equal(found[:, kept], torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1.0, -250.0, 1e-4])
def test_multiples_of_kept_channels_are_recovered(factor):
    x = samples()
    x[:, 2] = factor * x[:, 8]
    kept = torch.tensor([1, 8, 10])
    rebuilt = x[:, kept] @ reconstruction_map(x.T @ x / len(x), kept)
    error = (rebuilt - x)[:, 2].norm() / x[:, 2].norm()
    assert error < 2e-5


def test_duplicates_among_the_kept_do_not_break_it():
    x = samples()
    x[:, 3] = x[:, 4] = x[:, 5]
    kept = torch.tensor([3, 4, 6])
    found = reconstruction_map(x.T @ x, kept)
    assert found.abs().max().isfinite()
    error = (x[:, kept] @ found - x)[:, 5].norm() / x[:, 5].norm()
    assert error < 2e-5


def test_units_of_the_channels_do_not_matter():
    x = samples()
    kept = torch.tensor([0, 5, 6])
    unit = torch.logspace(4, -4, 12, dtype=torch.float64)
    found = reconstruction_map((x * unit).T @ (x * unit), kept)
    expected = reconstruction_map(x.T @ x, kept) * unit / unit[kept, None]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_dead_channels_neither_give_nor_take():
    x = samples()
    x[:, [2, 7]] = 0
    kept = torch.tensor([0, 2, 5])
    found = reconstruction_map(x.T @ x, kept)
    assert found.isfinite().all()
    assert not found[:, 7].any()
    assert found[1].nonzero().flatten().tolist() == [2]
    alive = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    without = reconstruction_map((x.T @ x)[alive][:, alive], torch.tensor([0, 4]))
    torch.testing.assert_close(found[[0, 2]][:, alive], without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_a_convolution_equals_rebuilding_its_input(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 12, 3, 3, generator=generator, dtype=dtype)
    maps = torch.randn(2, 4, 8, 8, generator=generator, dtype=dtype)
    reconstruction = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    folded = fold_input(weight, reconstruction)
    assert folded.shape == (6, 4, 3, 3)
    assert folded.dtype == dtype
    rebuilt = torch.einsum("bkhw,kd->bdhw", maps, reconstruction.to(dtype))
    torch.testing.assert_close(
        functional.conv2d(maps, folded), functional.conv2d(rebuilt, weight), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("block", [10, 500, 2**22])
@pytest.mark.parametrize("spread", [1, 9])
def test_folding_a_linear_layer_after_flatten(spread, block, monkeypatch):
    monkeypatch.setattr("acsp_lightning.functional.precision.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12 * spread, generator=generator, dtype=torch.float64)
    kept_maps = torch.randn(7, 4, spread, generator=generator, dtype=torch.float64)
    reconstruction = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    folded = fold_input(weight, reconstruction, spread=spread)
    assert folded.shape == (5, 4 * spread)
    rebuilt = torch.einsum("bks,kd->bds", kept_maps, reconstruction)
    torch.testing.assert_close(
        kept_maps.flatten(1) @ folded.T, rebuilt.flatten(1) @ weight.T, rtol=1e-10, atol=1e-10
    )


def test_folding_a_transposed_convolution():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 5, 3, 3, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64)
    reconstruction = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    rebuilt = torch.einsum("bkhw,kd->bdhw", maps, reconstruction)
    folded = fold_input(weight, reconstruction, dim=0)
    torch.testing.assert_close(
        functional.conv_transpose2d(maps, folded), functional.conv_transpose2d(rebuilt, weight)
    )


@pytest.mark.parametrize("spread", [1, 9])
def test_folding_into_a_tensor(spread):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12 * spread, generator=generator)
    reconstruction = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    out = torch.empty(5, 4 * spread)
    assert fold_input(weight, reconstruction, spread=spread, out=out) is out
    assert torch.equal(out, fold_input(weight, reconstruction, spread=spread))
    with pytest.raises(ValueError, match=r"out has shape \(5, 3\); the new weight has \(5, 4\)"):
        fold_input(torch.zeros(5, 12), reconstruction, out=torch.zeros(5, 3))


def test_keeping_everything_leaves_the_weight():
    x = samples()
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fold_input(weight, reconstruction_map(x.T @ x, torch.arange(12))), weight)


@pytest.mark.parametrize(
    ("moments", "kept", "message"),
    [
        (torch.zeros(3, 4), [0], r"shape \(3, 4\)"),
        (torch.full((3, 3), torch.inf), [0], "non-finite"),
        (-torch.eye(3), [0], "negative diagonal"),
        (torch.eye(3), [], r"kept is \[\]; .* at least one"),
        (torch.eye(3), [1, 1], "each once"),
        (torch.eye(3), [0, 3], r"\[0, 3\]; .* \[0, 3\)"),
        (torch.eye(3), [-1], r"\[-1\]"),
    ],
)
def test_wrong_moments(moments, kept, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_map(moments, torch.tensor(kept))


def test_wrong_spread():
    with pytest.raises(ValueError, match=r"24 inputs along axis 1; 12 channels of 3 .* need 36"):
        fold_input(torch.zeros(5, 24), torch.zeros(4, 12), spread=3)


def problem(size=400, inputs=12, outputs=5, seed=0):
    """Inputs of very different sizes, targets that they explain in part, and a weight to start from."""
    generator = torch.Generator().manual_seed(seed)
    x = samples(size, inputs, seed=seed)
    scale = x.square().mean(0).sqrt()
    true, weight = (torch.randn(outputs, inputs, generator=generator).double() / scale for _ in "ab")
    noise = torch.randn(size, outputs, generator=generator, dtype=torch.float64)
    return x, x @ true.T + 3.0 + 0.5 * noise, weight, torch.randn(outputs, generator=generator).double()


def ridge_by_lstsq(x, y, weight, bias=None, ridge=REFIT_RIDGE):
    """The ridge as rows of its own below the samples, each pulling one entry to its old value."""
    x, y, weight = (np.asarray(tensor.double()) for tensor in (x, y, weight))
    left, right = (x - x.mean(0), y - y.mean(0)) if bias is not None else (x, y)
    pull = np.sqrt(ridge * len(x)) * np.diag(np.sqrt((left**2).mean(0)))
    stacked = np.vstack([left, pull]), np.vstack([right, pull @ weight.T])
    # In units of the inputs, so that lstsq takes none of them for rounding.
    size = np.maximum(np.sqrt((left**2).mean(0)), 1e-300)
    best = (np.linalg.lstsq(stacked[0] / size, stacked[1], rcond=None)[0] / size[:, None]).T
    shift = None if bias is None else torch.from_numpy(y.mean(0) - best @ x.mean(0))
    return torch.from_numpy(best), shift


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", [400, 5, 9000])
def test_refit_is_ridge_regression_towards_the_old_weight(size, with_bias):
    x, y, weight, bias = problem(size)
    bias = bias if with_bias else None
    found, shift = refit_weight(x, y, weight, bias)
    expected, expected_shift = ridge_by_lstsq(x, y, weight, bias)
    units = x.square().mean(0).sqrt()
    torch.testing.assert_close(found * units, expected * units, rtol=1e-6, atol=1e-6)
    assert found.shape == weight.shape
    if with_bias:
        torch.testing.assert_close(shift, expected_shift, rtol=1e-6, atol=1e-6)
    else:
        assert shift is None


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", [11, 12, 13])
def test_fewer_samples_than_inputs_make_no_difference(size, with_bias, monkeypatch):
    """On either side of as many samples as inputs, with dead and constant inputs, and in blocks."""
    monkeypatch.setattr("acsp_lightning.functional.precision.BLOCK", 30)
    x, y, weight, bias = problem(size)
    x[:, 3] = 0.0
    if with_bias:
        x[:, 8] = 5.0
    found, shift = refit_weight(x, y, weight, bias if with_bias else None)
    expected, _ = ridge_by_lstsq(x, y, weight, bias if with_bias else None)
    dead = [3, 8] if with_bias else [3]
    alive = [place for place in range(12) if place not in dead]
    units = x.square().mean(0).sqrt()
    torch.testing.assert_close((found * units)[:, alive], (expected * units)[:, alive])
    assert torch.equal(found[:, dead], weight[:, dead])
    if with_bias:
        torch.testing.assert_close(shift, y.mean(0) - found @ x.mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_samples_of_a_wide_layer(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 300, generator=generator).to(dtype)
    weight, bias = torch.randn(9, 300, generator=generator).to(dtype), torch.zeros(9, dtype=dtype)
    y = torch.randn(20, 9, generator=generator).to(dtype)
    found, shift = refit_weight(x, y, weight, bias)
    expected, expected_shift = ridge_by_lstsq(x, y, weight, bias)
    assert found.dtype == shift.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))
    # The bias goes with the weight before that was rounded.
    torch.testing.assert_close(shift, expected_shift.to(dtype), rtol=0.02, atol=1e-3)


def test_refit_comes_close_to_plain_least_squares():
    x, y, weight, bias = problem(2000)
    found, shift = refit_weight(x, y, weight, bias)
    with_one = np.c_[x.numpy(), np.ones(len(x))]
    best = np.linalg.lstsq(with_one, y.numpy(), rcond=None)[0]
    least = (torch.from_numpy(with_one @ best) - y).square().mean()
    reached = (x @ found.T + shift - y).square().mean()
    before = (x @ weight.T + bias - y).square().mean()
    assert least <= reached < 1.01 * least < 0.1 * before


def test_what_the_samples_do_not_tell_stays_as_it_was():
    """Three samples of twelve inputs: the weight moves within their span alone."""
    x, y, weight, _ = problem(400)
    units = x.square().mean(0).sqrt()
    few, wanted = (x / units)[:3], y[:3]
    found, _ = refit_weight(few, wanted, weight * units)
    size = few.square().mean(0).sqrt()
    moved = (found - weight * units) * size
    _, _, basis = torch.linalg.svd(few / size)
    assert (moved @ basis[3:].T).norm() < 1e-8 * moved.norm()
    assert (few @ found.T - wanted).norm() < 1e-2 * wanted.norm()


def test_a_weight_that_is_right_already_stays():
    x, _, weight, bias = problem()
    for given in (bias, None):
        y = x @ weight.T if given is None else x @ weight.T + given
        found, shift = refit_weight(x, y, weight, given)
        torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-9)
        if given is not None:
            torch.testing.assert_close(shift, bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("with_bias", [True, False])
def test_dead_inputs_keep_their_weight(with_bias):
    x, y, weight, bias = problem()
    x[:, [2, 7]] = 0.0
    bias = bias if with_bias else None
    found, shift = refit_weight(x, y, weight, bias)
    assert torch.equal(found[:, [2, 7]], weight[:, [2, 7]])
    alive = [place for place in range(12) if place not in (2, 7)]
    without, shift_without = refit_weight(x[:, alive], y, weight[:, alive], bias)
    torch.testing.assert_close(found[:, alive], without, rtol=1e-6, atol=1e-9)
    if with_bias:
        torch.testing.assert_close(shift, shift_without)


@pytest.mark.parametrize("seed", range(12))
def test_constant_inputs_are_dead_beside_a_bias(seed):
    """A BatchNorm whose scale has decayed to 0 hands on its shift; rounding is no signal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5000, 40, generator=generator)
    x[:, :30] = 3 * torch.rand(30, generator=generator)
    y = torch.randn(5000, 4, generator=generator)
    weight, bias = torch.randn(4, 40, generator=generator), torch.zeros(4)
    found, shift = refit_weight(x, y, weight, bias)
    torch.testing.assert_close(found[:, :30], weight[:, :30], rtol=1e-4, atol=1e-4)
    least = (y - y.mean(0)).square().mean()
    assert (x @ found.T + shift - y).square().mean() <= least


@pytest.mark.parametrize("with_bias", [True, False])
def test_outputs_of_removed_inputs_are_recovered_where_the_kept_ones_tell_them(with_bias):
    x, _, weight, bias = problem()
    removed = x @ torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).double()
    reading = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).double()
    y = x @ weight.T + removed @ reading.T
    if with_bias:
        y = y + bias + 4.0  # as of a removed channel that is constant
    found, shift = refit_weight(x, y, weight, bias if with_bias else None)
    rebuilt = x @ found.T + (shift if with_bias else 0.0)
    assert (rebuilt - y).norm() < 2e-3 * y.norm()
    assert (x @ weight.T - y).norm() > 0.1 * y.norm()


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_copy_shares_its_weight_and_nothing_is_lost(with_bias):
    """The kept one of two equal inputs takes what the other said, be the others there or not."""
    x, _, weight, bias = problem()
    x[:, 3] = x[:, 8]
    bias = bias if with_bias else None
    y = x @ weight.T + (0.0 if bias is None else bias)
    kept = [place for place in range(12) if place != 3]
    found, shift = refit_weight(x[:, kept], y, weight[:, kept], bias)
    rebuilt = x[:, kept] @ found.T + (0.0 if shift is None else shift)
    assert (rebuilt - y).norm() < 1e-3 * y.norm()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_samples_that_are_not_finite_teach_nothing(where, wrong, with_bias):
    x, y, weight, bias = problem()
    (x if where == "inputs" else y)[17, 2] = wrong
    bias = bias if with_bias else None
    found, shift = refit_weight(x, y, weight, bias)
    assert torch.equal(found, weight)
    assert shift is None if bias is None else torch.equal(shift, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_refit_in_the_dtype_of_the_layer(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator).to(dtype)
    weight = torch.randn(3, 6, generator=generator).to(dtype)
    y = torch.randn(500, 3, generator=generator).to(dtype)
    found, shift = refit_weight(x, y, weight, torch.zeros(3, dtype=dtype))
    assert found.dtype == shift.dtype == dtype
    expected, expected_shift = ridge_by_lstsq(x, y, weight, shift)
    torch.testing.assert_close(found, expected.to(dtype))
    torch.testing.assert_close(shift, expected_shift.to(dtype))


def test_half_precision_does_not_overflow_in_the_sums():
    x = torch.full((9000, 1), 200.0, dtype=torch.float16)
    x[::2] = -200.0
    found, _ = refit_weight(x, 3 * x, torch.zeros(1, 1, dtype=torch.float16))
    assert found.item() == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("samples", [500, 7], ids=["products", "rows"])
@pytest.mark.parametrize("sizes", [(1,), (3, 2, 1), (4, 3, 60)])
def test_samples_in_parts_teach_the_same(sizes, samples, with_bias):
    """However their means differ, and whatever is constant in the first part alone."""
    x, y, weight, bias = problem(samples)
    x[: samples // 2] += 5.0
    x[: sizes[0], 4] = x[0, 4]
    bias = bias if with_bias else None
    expected, expected_shift = refit_weight(x, y, weight, bias)
    parts = LeastSquares(samples, weight, bias)
    start = 0
    for size in (*sizes, samples):
        parts.add(x[start : start + size], y[start : start + size])
        start += size
    found, shift = parts.solve()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert (shift is None) is (bias is None)
    if with_bias:
        torch.testing.assert_close(shift, expected_shift, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("samples", [500, 7])
def test_one_part_that_is_not_finite_spoils_all(samples):
    x, y, weight, bias = problem(samples)
    x[1, 0] = torch.nan
    parts = LeastSquares(samples, weight, bias)
    for part, wanted in zip(x.split(3), y.split(3), strict=True):
        parts.add(part, wanted)
    found, shift = parts.solve()
    assert torch.equal(found, weight)
    assert torch.equal(shift, bias)


def test_no_samples_teach_nothing():
    _, _, weight, bias = problem()
    found, shift = refit_weight(torch.zeros(0, 12), torch.zeros(0, 5), weight, bias)
    assert torch.equal(found, weight)
    assert torch.equal(shift, bias)


def test_refit_leaves_its_arguments_alone():
    arguments = problem()
    before = [tensor.clone() for tensor in arguments]
    refit_weight(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
