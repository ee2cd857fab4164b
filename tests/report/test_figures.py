"""Pictures against the record they are drawn from, read off their own axes."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from steps import selection, step, viewed

from acsp_lightning import Complexity, PruningStep, SelectionConfig
from acsp_lightning.functional import ClassSeparation, select_channels
from acsp_lightning.report.figures import layer_picture, png, step_figures, summary_figures
from acsp_lightning.views import GroupView


def apart(points: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def figures(of: PruningStep) -> dict[str, Figure]:
    return dict(step_figures(of))


def test_which_pictures_there_are() -> None:
    assert list(figures(viewed())) == ["network", "channels", "flops", "curves", "layer.conv"]
    assert list(dict(summary_figures(viewed()))) == ["network", "channels", "flops"]
    assert list(figures(step())) == ["channels", "flops", "curves"]


def test_bars_are_as_long_as_the_layers_are_wide() -> None:
    layers = {f"features.{place}": (10 + place, 5 + place) for place in range(5)}
    (axes,) = figures(replace(step(), layers=layers))["channels"].axes
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == [old for old, _ in layers.values()]
    assert [bar.get_width() for bar in after] == [new for _, new in layers.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(layers)


def test_flops_of_layers_that_matter() -> None:
    before = Complexity(1, 10_009, {"conv": 9_000, "norm": 19, "head": 990}, {})
    after = Complexity(1, 5_000, {"conv": 4_500, "norm": 5, "head": 495}, {})
    (axes,) = figures(replace(step(), before=before, after=after))["flops"].axes
    assert [bar.get_width() for bar in axes.containers[0]] == [9_000, 990]
    assert [bar.get_width() for bar in axes.containers[1]] == [4_500, 495]


def test_the_curve_of_the_network() -> None:
    found = viewed()
    (axes,) = figures(found)["network"].axes
    line, chosen, knee = axes.lines
    assert found.network is not None
    np.testing.assert_allclose(line.get_xdata(), np.array(found.network.flops) / found.network.flops[0])
    np.testing.assert_allclose(line.get_ydata(), np.sqrt(np.array(found.network.damage) / 0.5))
    assert chosen.get_xdata()[0] == found.after.flops / found.before.flops
    assert knee.get_xdata() == [40 / 60]


def test_the_curves_of_a_layer() -> None:
    chosen = selection()
    (axes,) = figures(step())["curves"].axes
    coverage, silhouette, kept = axes.lines
    assert list(coverage.get_xdata()) == chosen.ks.tolist()
    assert list(coverage.get_ydata()) == chosen.coverage.tolist()
    assert list(silhouette.get_ydata()) == chosen.mss.tolist()
    assert coverage.get_alpha() > silhouette.get_alpha(), "the deciding curve stands out"
    assert kept.get_xdata()[0] == chosen.k == 3


def test_the_knee_of_a_layer_is_marked() -> None:
    points = torch.cat([torch.randn(4, 3).repeat(6, 1), torch.randn(2, 3)])
    config = SelectionConfig(curve="mss")
    chosen = select_channels(apart(points), config)
    assert chosen.knee is not None
    (axes,) = figures(replace(step(), selections={"conv": chosen}))["curves"].axes
    knee = axes.lines[-1]
    assert list(knee.get_xdata()) == [chosen.knee]
    assert list(knee.get_ydata()) == [float(chosen.curve[chosen.ks.tolist().index(chosen.knee)])]


def test_the_map_of_a_layer() -> None:
    found = viewed()
    view, chosen = found.views["conv"], found.selections["conv"]
    places = figures(found)["layer.conv"].axes[0]
    channels, kept = places.collections
    np.testing.assert_allclose(channels.get_offsets(), view.places)
    np.testing.assert_allclose(kept.get_offsets(), view.places[chosen.kept])
    colours = [tuple(colour) for colour in channels.get_facecolors()]
    for one in range(6):
        for other in range(6):
            assert (colours[one] == colours[other]) == (chosen.labels[one] == chosen.labels[other])
    assert {text.get_text() for text in places.texts} == {str(c) for c in chosen.kept.tolist()}
    sizes, weights = channels.get_sizes(), chosen.weights
    assert (np.argsort(sizes, kind="stable") == weights.argsort(stable=True).numpy()).all()
    assert kept.get_edgecolors()[0] == pytest.approx(to_rgba("black"))


def test_the_classes_of_a_layer() -> None:
    found = viewed()
    _, before, after, _ = figures(found)["layer.conv"].axes
    classes = found.views["conv"].classes
    for axes, values in ((before, classes.before), (after, classes.after)):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
        assert image.get_clim() == (0, 2)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0-1", "2-4"]


def many(channels: int, ranges: int) -> PruningStep:
    """A step whose one group is wide, of many classes."""
    points = torch.randn(channels, 5, generator=torch.Generator().manual_seed(0))
    chosen = select_channels(apart(points), SelectionConfig(keep=0.5))
    values = torch.rand(ranges, ranges, dtype=torch.float64)
    bounds = tuple((20 * place, 20 * place + 19) for place in range(ranges))
    view = GroupView(
        torch.arange(channels), points[:, :2].double(), 0.5, ClassSeparation(bounds, values, values)
    )
    return replace(step(), selections={"conv": chosen}, views={"conv": view})


def test_many_channels_and_classes_stay_readable() -> None:
    figure = figures(many(120, 50))["layer.conv"]
    places, before, *_ = figure.axes
    assert not places.texts, "120 numbers would be a blot"
    assert not places.lines
    assert 5 <= len(before.get_xticks()) <= 11
    assert before.get_xticklabels()[1].get_text() == "100-119"


def test_names_are_shortened_and_do_not_overlap() -> None:
    layers = {f"backbone.{'block.' * 20}conv{place}": (8, 4) for place in range(60)}
    figure = figures(replace(step(), layers=layers))["channels"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = axes.get_yticklabels()
    assert all(len(label.get_text()) <= 34 for label in labels)
    assert len({label.get_text() for label in labels}) == 60
    boxes = [label.get_window_extent() for label in labels]
    assert all(one.y0 >= other.y1 - 1 for one, other in pairwise(boxes))


def test_pictures_are_png_and_the_same_every_time() -> None:
    first, second = (png(figures(viewed())["layer.conv"]) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_files_have_names_that_every_system_takes() -> None:
    assert layer_picture("net.a/b<c>") == "layer.net.a_b_c_"
