import numpy as np
import pytest
import torch
from torch.nn import functional

from acsp_lightning.functional import fold_input, reconstruction_map


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


@pytest.mark.parametrize("spread", [1, 9])
def test_folding_a_linear_layer_after_flatten(spread):
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
