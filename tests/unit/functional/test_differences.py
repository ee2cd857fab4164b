"""Distances between channels, in both precisions, against those of vectors written out in float64."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.points import many_classes, sample, some_weights
from scipy.spatial.distance import cdist

from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.functional import (
    ClassMoments,
    _class_pairs,
    _differences,
    class_moments,
    separability_vectors,
    separation_distances,
    trace_curves,
)
from acsp_lightning.functional._class_pairs import ClassPairs
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.zoo import ResNet
from acsp_lightning.zoo.weights import load_weights

DATA = Path(__file__).parents[4] / "shared" / "data"
SINGLE, DOUBLE = (0, 1e-5), (10**9, 1e-12)  # rows from which float32 is used, and the error


@pytest.fixture(params=[SINGLE, DOUBLE], ids=["float32", "float64"])
def error(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The relative error that distances may have in a precision, which is used from here on."""
    rows, error = request.param
    monkeypatch.setattr(_differences, "MANY_ROWS", rows)
    return float(error)


def written_out(moments: ClassMoments) -> np.ndarray:
    vectors = separability_vectors(moments).numpy()
    return cdist(vectors, vectors)


def check(moments: ClassMoments, error: float) -> None:
    found = separation_distances(moments).numpy()
    np.testing.assert_allclose(found, written_out(moments), rtol=error, atol=1e-14)


def changed(moments: ClassMoments, mean: torch.Tensor, m2: torch.Tensor) -> ClassMoments:
    return ClassMoments(moments.count, mean, m2)


def faint(moments: ClassMoments) -> ClassMoments:
    """Classes a ten-thousandth as far apart, and with the same variances but for that."""
    m2 = moments.m2.mean(0) + 1e-4 * (moments.m2 - moments.m2.mean(0))
    return changed(moments, 1e-4 * moments.mean, m2)


def saturated(moments: ClassMoments) -> ClassMoments:
    """Classes far apart: JM of almost 2 between most of them."""
    return changed(moments, 30 * moments.mean, moments.m2)


def far_away(moments: ClassMoments) -> ClassMoments:
    """One class so far away that float32 would not hold the differences between the others."""
    away = torch.zeros_like(moments.mean)
    away[3] = 1e6
    return changed(moments, moments.mean + away, moments.m2)


def of_any_size(moments: ClassMoments) -> ClassMoments:
    """Channels of all scales, with offsets."""
    scale = 10.0 ** torch.linspace(-9, 9, moments.num_channels, dtype=torch.float64)[:, None]
    return changed(moments, scale * (moments.mean + 100), scale.square() * moments.m2)


def alike(moments: ClassMoments) -> ClassMoments:
    """Half of the channels are like others, more or less."""
    noise = torch.randn(moments.mean.shape, generator=torch.Generator().manual_seed(1))
    noise *= 10.0 ** -torch.linspace(0, 8, moments.num_channels)[:, None]
    other = torch.arange(moments.num_channels) // 2
    return changed(moments, moments.mean[:, other] + noise, moments.m2[:, other].contiguous())


def one_alone(moments: ClassMoments) -> ClassMoments:
    """One channel tells the classes apart, the others hardly."""
    strength = torch.full((moments.num_channels, 1), 1e-2, dtype=torch.float64)
    strength[5] = 10
    return changed(moments, strength * moments.mean, moments.m2)


KINDS = [faint, saturated, far_away, of_any_size, alike, one_alone]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 10, 80])
def test_channels_of_any_kind(error: float, kind: Any, classes: int) -> None:
    moments = many_classes(classes=max(classes, 4), channels=60)
    if classes == 2:
        moments = ClassMoments(*(part[2:4] for part in (moments.count, moments.mean, moments.m2)))
        kind = faint if kind is far_away else kind
    # In float64 JM of a faint channel are differences of numbers close to 1, however distances come.
    check(kind(moments), max(error, 1e-6 if kind is faint else 1e-9))


@pytest.mark.parametrize("stripe", [1, 7, 40])
@pytest.mark.parametrize("rows", [1, 30, 8192])
def test_distances_do_not_depend_on_parts_and_stripes(
    error: float, rows: int, stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_differences, "STRIPE", stripe)
    monkeypatch.setattr(_differences, "ROWS", rows)
    values, labels = sample(channels=40)
    values[:, 7] = values[:, 31]
    values[:, 8] = values[:, 9] + 1e-6 * values[:, 10]
    moments = class_moments(values, labels)
    found = separation_distances(moments)
    np.testing.assert_allclose(found, written_out(moments), rtol=max(error, 1e-7), atol=1e-14)
    assert found[7, 31] == 0
    assert 0 < found[8, 9] < 1e-4


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("block", [400, 2**25])
def test_copies_are_at_distance_zero_and_near_copies_are_exact(
    error: float, monkeypatch: pytest.MonkeyPatch, block: int, few: int
) -> None:
    """Whether what is close is compared by products in float64, or one by one."""
    monkeypatch.setattr(_class_pairs, "BLOCK", block)
    monkeypatch.setattr(_differences, "PRODUCTS", few)
    moments = class_moments(*sample(channels=9))
    source = torch.arange(9).repeat(4)
    noise = torch.randn(moments.mean.repeat(1, 4, 1).shape, generator=torch.Generator().manual_seed(1))
    # Nine channels, nine copies of them, nine that all but agree and nine that nearly agree.
    noise *= torch.tensor([0.0, 0.0, 1e-7, 1e-2]).repeat_interleave(9)[:, None]
    moments = ClassMoments(
        moments.count, moments.mean[:, source] + noise, moments.m2[:, source].contiguous()
    )
    distances, expected = separation_distances(moments), written_out(moments)
    np.testing.assert_allclose(distances, expected, rtol=max(error, 1e-9))
    # Of one channel with and without noise, whose distance float32 could not tell.
    same = (source[:, None] == source).numpy()
    np.testing.assert_allclose(distances.numpy()[same], expected[same], rtol=1e-9)
    zero = torch.eye(36, dtype=torch.bool)
    zero[range(9), range(9, 18)] = zero[range(9, 18), range(9)] = True
    assert torch.equal(distances == 0, zero)


def test_channels_that_separate_nothing_cost_nothing(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead channels agree with each other; a layer full of them must not be compared pair by pair."""
    moments = many_classes(classes=6)
    dead = torch.arange(24) % 3 > 0
    moments.mean[:, dead] = moments.m2[:, dead] = 0
    compared = []
    whole = _differences._squared_differences
    monkeypatch.setattr(
        _differences, "_squared_differences", lambda p, c: (compared.append(len(c)), whole(p, c))[1]
    )
    distances = separation_distances(moments)
    assert not distances[dead][:, dead].any()
    assert not compared
    check(moments, error)


def test_float32_is_for_many_rows() -> None:
    few, many = many_classes(classes=300), many_classes(classes=330)
    assert [_differences.is_long(ClassPairs.of(moments)) for moments in (few, many)] == [False, True]


def test_results_do_not_depend_on_threads_whose_number_is_left_alone(error: float) -> None:
    moments, threads = many_classes(classes=80, channels=60), torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(separation_distances(moments))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def real() -> dict[str, ClassMoments]:
    """Moments of a trained ResNet-20 on CIFAR-10."""
    if not (DATA / "cifar10_resnet20.pt").exists():
        pytest.skip(f"needs a trained ResNet-20 and pictures in {DATA}")
    spec = importlib.util.spec_from_file_location("unpack", DATA / "unpack.py")
    assert spec is not None
    assert spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels = unpack.read(DATA / "cifar10_test.npz")
    pictures = torch.from_numpy(images[:300]).permute(0, 3, 1, 2) / 255
    pictures -= pictures.mean((0, 2, 3), keepdim=True)
    pictures /= pictures.std((0, 2, 3), keepdim=True)
    network = ResNet([3, 3, 3])
    load_weights(network, DATA / "cifar10_resnet20.pt")
    network.eval()
    groups = trace_groups(network, (pictures[:2],)).groups
    capture = ActivationCapture(network, groups, 1, num_classes=10)
    capture.attach()
    with torch.no_grad():
        capture.run((pictures,), torch.from_numpy(labels[:300]))
    capture.detach()
    found = capture.finish()
    return {layer: found.moments(layer) for layer in found.outputs}


def test_a_trained_network(real: dict[str, ClassMoments], error: float) -> None:
    """Within the error, and with the same medoids. Without weights some are a tie, as in every pair."""
    for seed, (layer, moments) in enumerate(real.items()):
        check(moments, max(error, 1e-10))
        weights = 0.2 + some_weights(moments.num_channels, seed)
        found = trace_curves(separation_distances(moments), weights).sweep.medoids
        expected = trace_curves(torch.from_numpy(written_out(moments)), weights).sweep.medoids
        assert all(map(torch.equal, found, expected)), layer
