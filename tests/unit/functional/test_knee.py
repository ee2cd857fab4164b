import numpy as np
import pytest
import torch
from kneed import DataGenerator, KneeLocator

from acsp_lightning.functional import find_knee, mean_simplified_silhouette, sweep_k_medoids

KS = torch.arange(2, 64)


def saturating(ks, rate):
    return 1 - torch.exp(-rate * (ks - 2).double() / len(ks))


@pytest.mark.parametrize(
    ("interpolation", "degree"), [("interp1d", 2), ("polynomial", 2), ("polynomial", 6)]
)
@pytest.mark.parametrize("rate", [3.0, 8.0, 20.0])
def test_equals_kneed_on_the_same_curve(interpolation, degree, rate):
    curve = saturating(KS, rate)
    located = KneeLocator(
        KS.numpy(),
        curve.numpy(),
        curve="concave",
        direction="increasing",
        interp_method=interpolation,
        polynomial_degree=degree,
    )
    assert located.knee is not None
    assert find_knee(KS, curve, interpolation=interpolation, degree=degree) == located.knee


def test_figure_2_of_the_kneedle_paper():
    x, y = DataGenerator.figure2()
    # The paper reads its knee off at x = 0.22, the third of ten points.
    knee = find_knee(torch.arange(2, 12), torch.from_numpy(y))
    assert x[knee - 2] == pytest.approx(0.22, abs=0.005)


@pytest.mark.parametrize("vertex", [1.0, 1.3, 2.0, 5.0])
def test_the_knee_of_degree_two_is_half_whatever_the_parabola(vertex):
    x = np.linspace(0, 1, len(KS))
    curve = torch.from_numpy(1 - (1 - x / vertex) ** 2)
    knee = find_knee(KS, curve, interpolation="polynomial", degree=2)
    assert (knee - 2) / (63 - 2) == pytest.approx(0.5, abs=1 / 61)


@pytest.mark.parametrize("kind", ["jm", "clustered", "noise"])
def test_degree_two_keeps_about_half_of_any_layer(distances_of, kind):
    distances = distances_of(kind, 64)
    sweep = sweep_k_medoids(distances)
    curve = mean_simplified_silhouette(distances, sweep)
    knee = find_knee(sweep.ks, curve, interpolation="polynomial", degree=2)
    assert 0.375 <= (knee - 2) / 61 <= 0.52


@pytest.mark.parametrize(
    ("ks", "curve"),
    [
        (torch.arange(2, 8), saturating(torch.arange(2, 8), 5.0)),
        (KS, torch.full((62,), 0.7)),
        (KS, 0.7 + 1e-12 * torch.rand(62, generator=torch.Generator().manual_seed(0)).double()),
        (KS, KS / 64),
        (KS, KS.double() / 63),
        (KS, torch.exp(saturating(KS, -2.0).neg())),
        (KS[:0], torch.zeros(0)),
    ],
    ids=["six points", "flat", "flat but for rounding", "float line", "line", "convex", "empty"],
)
def test_no_knee(ks, curve):
    assert find_knee(ks, curve) is None


def test_seven_points_suffice():
    ks = torch.arange(2, 9)
    assert find_knee(ks, torch.tensor([0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])) == 3


@pytest.mark.parametrize("scale", [1.0, 1 / 64, 0.37, 1.3e9])
@pytest.mark.parametrize("rate", [3.0, 8.0, 20.0])
def test_the_knee_of_any_axis_is_the_knee_of_the_places_on_it(rate, scale):
    """FLOPs are no integers, and neither are shares of them."""
    curve = saturating(KS, rate)
    axis = KS.double() * scale
    knee = find_knee(axis, curve)
    assert knee == axis[find_knee(KS, curve) - 2]  # one of the points, to the bit


def test_the_type_of_a_knee_is_that_of_its_axis():
    curve = saturating(KS, 8.0)
    assert type(find_knee(KS, curve)) is int
    assert type(find_knee(KS.double(), curve)) is float


def test_an_axis_of_uneven_steps():
    """Two straight lines that meet at 0.3, seen at points that lie anywhere."""
    drawn = torch.rand(60, generator=torch.Generator().manual_seed(0)).double()
    axis = torch.cat([torch.tensor([0.0, 0.3, 1.0]).double(), drawn]).sort().values
    curve = torch.minimum(axis / 0.3, 1 + 0.1 * (axis - 0.3))
    assert find_knee(axis, curve) == axis[(axis - 0.3).abs().argmin()]


@pytest.mark.parametrize(
    ("curve", "message"),
    [(torch.zeros(9), r"\(62,\) and curve \(9,\)"), (torch.full((62,), torch.nan), "not finite")],
)
def test_wrong_curves(curve, message):
    with pytest.raises(ValueError, match=message):
        find_knee(KS, curve)
