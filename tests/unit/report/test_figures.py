"""Plots against the record they are drawn from, read off their own axes."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from helpers.records import selection, step, viewed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from PIL import Image

from acsp_lightning import Complexity, PruningStep, SelectionConfig
from acsp_lightning.functional import (
    ChannelSelection,
    ClassSeparation,
    LostPair,
    WidthReason,
    select_channels,
)
from acsp_lightning.report.figures import (
    ALONE,
    BY_CURVE,
    layer_plot,
    png,
    step_figures,
    summary_figures,
)
from acsp_lightning.selection import maps
from acsp_lightning.selection.maps import GroupMap
from acsp_lightning.selection.path import NetworkCurve


def figures(of: PruningStep) -> dict[str, Figure]:
    return dict(step_figures(of))


def selected(points: torch.Tensor, config: SelectionConfig) -> ChannelSelection:
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return select_channels(distances, config)


def test_which_plots_there_are() -> None:
    assert list(figures(viewed())) == ["network", "channels", "flops", "layer.conv"]
    assert list(dict(summary_figures(viewed()))) == ["network", "channels", "flops"]
    assert list(figures(step())) == ["channels", "flops"]


@pytest.mark.parametrize("reason", list(WidthReason))
def test_curves_are_drawn_where_they_decided_and_nowhere_else(reason: WidthReason) -> None:
    drawn = figures(replace(step(), selections={"conv": replace(selection(), reason=reason)}))
    assert ("curves" in drawn) == (reason in (WidthReason.KNEE, WidthReason.NO_KNEE, WidthReason.LEVEL))
    found = viewed()
    chosen = replace(found.selections["conv"], reason=reason)
    (axes,) = figures(replace(found, selections={"conv": chosen}))["network"].axes
    assert len(axes.lines) == (3 if reason is WidthReason.NETWORK_KNEE else 2)


def test_a_layer_that_decided_by_itself_has_a_curve_among_others() -> None:
    own = replace(selection(), reason=WidthReason.KNEE)
    figure = figures(replace(step(), selections={"share": selection(), "own": own}))["curves"]
    (axes,) = (axes for axes in figure.axes if axes.axison)
    assert axes.get_title("left").startswith("own\n")


def test_bars_are_as_long_as_the_layers_are_wide() -> None:
    layers = {f"features.{place}": (10 + place, 5 + place) for place in range(5)}
    (axes,) = figures(replace(step(), layers=layers))["channels"].axes
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == [old for old, _ in layers.values()]
    assert [bar.get_width() for bar in after] == [new for _, new in layers.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(layers)
    assert [text.get_text() for text in axes.texts] == ["50%", "55%", "58%", "62%", "64%"]


def test_flops_of_layers_that_matter() -> None:
    before = Complexity(1, 10_000, {"conv": 9_000, "norm": 10, "head": 990}, {})
    after = Complexity(1, 5_000, {"conv": 4_500, "norm": 5, "head": 495}, {})
    (axes,) = figures(replace(step(), before=before, after=after))["flops"].axes
    assert [bar.get_width() for bar in axes.containers[0]] == [9_000, 990]
    assert [bar.get_width() for bar in axes.containers[1]] == [4_500, 495]
    assert axes.get_xlabel() == "FLOPs; 1 layers with less than 2% of the largest are left out"


def test_the_curve_of_the_network() -> None:
    found = viewed()
    (axes,) = figures(found)["network"].axes
    line, chosen, knee = axes.lines
    assert found.network is not None
    np.testing.assert_allclose(line.get_xdata(), np.array(found.network.flops) / found.network.flops[0])
    np.testing.assert_allclose(line.get_ydata(), np.sqrt(np.array(found.network.damage) / 0.5))
    assert chosen.get_xdata()[0] == found.after.flops / found.before.flops
    assert knee.get_xdata() == [40 / 60]


def test_a_network_without_knee_or_damage() -> None:
    flat = NetworkCurve((60.0, 40.0), (0.0, 0.0), None)
    (axes,) = figures(replace(viewed(), network=flat))["network"].axes
    line, _ = axes.lines
    assert list(line.get_ydata()) == [0, 0]


def test_the_curves_of_a_layer() -> None:
    chosen = replace(selection(), reason=WidthReason.LEVEL)
    axes, *empty = figures(replace(step(), selections={"conv": chosen}))["curves"].axes
    coverage, kept = axes.lines
    assert list(coverage.get_xdata()) == chosen.ks.tolist()
    assert list(coverage.get_ydata()) == chosen.coverage.tolist()
    assert coverage.get_label() == "coverage"
    assert kept.get_xdata()[0] == chosen.k == 3
    assert axes.get_title("left").startswith("conv\n3 of 6: one level of all curves")
    assert not any(axes.axison for axes in empty)


def test_the_knee_of_a_layer_is_marked() -> None:
    points = torch.cat([torch.randn(4, 3).repeat(6, 1), torch.randn(2, 3)])
    chosen = selected(points, SelectionConfig(curve="mss"))
    assert chosen.knee is not None
    axes, *_ = figures(replace(step(), selections={"conv": chosen}))["curves"].axes
    silhouette, _, knee = axes.lines
    assert list(silhouette.get_ydata()) == chosen.mss.tolist()
    assert list(knee.get_xdata()) == [chosen.knee]
    assert list(knee.get_ydata()) == [float(chosen.mss[chosen.ks.tolist().index(chosen.knee)])]


def test_the_map_of_a_layer() -> None:
    found = viewed()
    view, chosen = found.maps["conv"], found.selections["conv"]
    places = figures(found)["layer.conv"].axes[0]
    lines, channels, kept = places.collections
    np.testing.assert_allclose(channels.get_offsets(), view.places)
    np.testing.assert_allclose(kept.get_offsets(), view.places[chosen.kept])
    assert kept.get_edgecolors()[0] == pytest.approx(to_rgba("black"))
    assert [text.get_text() for text in places.texts] == [str(c) for c in chosen.kept.tolist()]
    sizes, weights = channels.get_sizes(), chosen.weights
    assert (np.argsort(sizes, kind="stable") == weights.argsort(stable=True).numpy()).all()
    ends = {tuple(map(tuple, line)) for line in lines.get_segments()}
    others = [channel for channel in range(6) if channel not in chosen.medoids]
    assert ends == {
        (
            tuple(view.places[one].tolist()),
            tuple(view.places[chosen.medoids[chosen.labels[one]]].tolist()),
        )
        for one in others
    }
    assert "about right (stress 0.12)" in places.get_title()


def test_the_classes_of_a_layer() -> None:
    found = viewed()
    view = found.maps["conv"]
    classes = replace(view.classes, ranges=((1, 1), (3, 3)))
    found = replace(found, maps={"conv": replace(view, classes=classes)})
    _, before, after, lost, _ = figures(found)["layer.conv"].axes
    for axes, values in (
        (before, classes.before),
        (after, classes.after),
        (lost, classes.before - classes.after),
    ):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
    for labels in (before.get_yticklabels(), after.get_xticklabels(), lost.get_xticklabels()):
        assert [label.get_text() for label in labels] == ["bee", "dog"]
    assert before.images[0].get_clim() == after.images[0].get_clim() == (0, 2)
    assert lost.images[0].get_clim() == (0, 0.75)
    assert (before.get_title(), after.get_title()) == ("all 6 channels", "the 3 kept")


@pytest.mark.parametrize(("stress", "drawn"), [(0.4, True), (0.41, False)])
@pytest.mark.parametrize("many", [False, True])
def test_a_map_that_would_mislead_is_left_out(stress: float, drawn: bool, many: bool) -> None:
    found = viewed()
    view = replace(found.maps["conv"], stress=stress)
    if not many:
        view = replace(view, classes=replace(view.classes, worst=()))
    figure = figures(replace(found, maps={"conv": view}))["layer.conv"]
    titles = [axes.get_title() for axes in figure.axes]
    assert any("close ones separate the same classes" in title for title in titles) == drawn
    assert any("lose most" in title or "kept" in title for title in titles)


def mapped(points: torch.Tensor, config: SelectionConfig, ranges: int = 2) -> PruningStep:
    """A step whose one group has these channels, of many classes."""
    values = torch.rand(ranges, ranges, dtype=torch.float64)
    bounds = tuple((20 * place, 20 * place + 19) for place in range(ranges))
    classes = ClassSeparation(bounds, values, values, class_pairs=1)
    view = GroupMap(torch.arange(len(points)), points[:, :2].double(), 0.25, classes)
    return replace(step(), selections={"conv": selected(points, config)}, maps={"conv": view})


@pytest.mark.parametrize("classes", [31, 100, 1000])
def test_of_many_classes_the_worst_pairs_are_named(classes: int) -> None:
    found = viewed()
    view = found.maps["conv"]
    number = min(classes, 50)
    edges = [place * classes // number for place in range(number + 1)]
    worst = tuple(LostPair(place, classes - 1 - place, 1.9 - place / 10, 0.1) for place in range(12))
    many = ClassSeparation(
        tuple((low, high - 1) for low, high in pairwise(edges)),
        *torch.rand(2, number, number, dtype=torch.float64),
        class_pairs=9,
        worst=worst,
    )
    names = tuple(f"class number {index} of a long name" for index in range(classes - 3))
    step = replace(found, maps={"conv": replace(view, classes=many)}, class_names=names)
    figure = figures(step)["layer.conv"]
    _, pairs = figure.axes
    before, after = pairs.collections[1:]
    assert before.get_offsets()[:, 0].tolist() == [pair.before for pair in worst]
    assert after.get_offsets()[:, 0].tolist() == [pair.after for pair in worst]
    labels = [label.get_text() for label in pairs.get_yticklabels()]
    assert labels[0].endswith(f" | {classes - 1}"), "one without a name has its number"
    assert "ong name" in labels[0]
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in pairs.get_yticklabels()]
    assert all(one.y0 >= other.y1 - 1 for one, other in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


@pytest.mark.parametrize(("width", "limit"), [(8, 3), (13, 5), (21, 4), (512, 400)])
def test_a_plot_of_whatever_widths(monkeypatch: pytest.MonkeyPatch, width: int, limit: int) -> None:
    monkeypatch.setattr(maps, "MOST_CHANNELS", limit)
    generator = torch.Generator().manual_seed(width)
    points = torch.randn(width, 3, generator=generator)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    magnitudes = torch.rand(width, generator=generator)
    few, many = [2, 3, width // 2, width - 1], [3]
    for k in few if width < 100 else many:
        for config in (SelectionConfig(), SelectionConfig(representative="weight")):
            chosen = select_channels(distances, config, magnitudes=magnitudes, k=k)
            shown = maps._shown(chosen)
            view = replace(viewed().maps["conv"], channels=shown, places=points[shown, :2].double())
            figure = figures(replace(step(), selections={"conv": chosen}, maps={"conv": view}))
            places = figure["layer.conv"].axes[0]
            ringed = shown[torch.isin(shown, chosen.kept)]
            np.testing.assert_allclose(places.collections[-1].get_offsets(), points[ringed, :2])
            if k <= min(limit // 2, 40):
                assert [t.get_text() for t in places.texts] == [str(c) for c in chosen.kept.tolist()]


def test_clusters_that_did_not_decide_are_not_drawn() -> None:
    points = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = mapped(points, SelectionConfig(keep=0.2))
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    config = SelectionConfig(keep=0.2, criterion="l1")
    by_size = select_channels(distances, config, magnitudes=points[:, 0])
    for chosen, clusters in ((found.selections["conv"], True), (by_size, False)):
        places = figures(replace(found, selections={"conv": chosen}))["layer.conv"].axes[0]
        assert (len(places.collections) == 3) == clusters, "lines"
        assert (len(np.unique(places.collections[-2].get_facecolors(), axis=0)) > 1) == clusters
        assert ("cluster" in places.get_xlabel()) == clusters


def test_clusters_side_by_side_have_different_colours() -> None:
    # Twenty clusters of three on a spiral, and one channel far away.
    turns = torch.arange(20).repeat_interleave(3) / 3
    centres = torch.stack([turns * turns.cos(), turns * turns.sin()], 1)
    jitter = 0.01 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    points = torch.cat([centres + jitter, torch.tensor([[40.0, 40.0]])])
    found = mapped(points, SelectionConfig(keep=21 / 61))
    clusters = found.selections["conv"].labels
    colours = [to_hex(c) for c in figures(found)["layer.conv"].axes[0].collections[1].get_facecolors()]
    assert colours[60] == ALONE
    assert len(set(colours)) > 7
    middle = torch.stack([points[clusters == cluster].mean(0) for cluster in range(21)])
    by_cluster = [{colours[one] for one in (clusters == c).nonzero().flatten()} for c in range(21)]
    apart = torch.cdist(middle, middle).fill_diagonal_(torch.inf).argmin(1)
    for cluster, neighbour in enumerate(apart.tolist()):
        assert len(by_cluster[cluster]) == 1
        assert by_cluster[cluster] != by_cluster[neighbour]


def test_many_channels_and_classes_stay_readable() -> None:
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    places, before, *_ = figures(mapped(points, SelectionConfig(keep=0.5), 50))["layer.conv"].axes
    assert not places.texts, "100 numbers would be a blot"
    assert len(places.collections) == 2, "no lines"
    assert 5 <= len(before.get_xticks()) <= 10
    assert before.get_yticklabels()[1].get_text() == "100-119"


def test_two_classes_and_a_part_of_the_channels() -> None:
    points = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    found = mapped(points, SelectionConfig(keep=0.5))
    view = found.maps["conv"]
    shown = found.selections["conv"].kept
    part = replace(view, channels=shown, places=view.places[shown])
    places, *_ = figures(replace(found, maps={"conv": part}))["layer.conv"].axes
    np.testing.assert_allclose(places.collections[1].get_offsets(), view.places[shown])
    assert places.get_title().startswith("4 of 9 channels")


LONG = [f"backbone.{'block.' * 20}conv{place}" for place in range(60)]


def test_names_are_shortened_and_do_not_overlap() -> None:
    figure = figures(replace(step(), layers={name: (8, 4) for name in LONG}))["channels"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = axes.get_yticklabels()
    assert all(len(label.get_text()) <= 36 for label in labels)
    assert len({label.get_text() for label in labels}) == 60
    boxes = [label.get_window_extent() for label in labels]
    assert all(one.y0 >= other.y1 - 1 for one, other in pairwise(boxes))


def test_titles_of_many_curves_do_not_overlap() -> None:
    wordy = replace(selection(), reason=max(BY_CURVE, key=len))
    figure = figures(replace(step(), selections=dict.fromkeys(LONG[:7], wordy)))["curves"]
    figure.draw_without_rendering()
    used = [axes for axes in figure.axes if axes.axison]
    assert len(used) == 7
    boxes = [axes.get_tightbbox() for axes in used]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert not one.overlaps(other)


def test_plots_are_png_and_the_same_every_time() -> None:
    first, second = (png(figures(viewed())["layer.conv"]) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as plot:
        assert plot.format == "PNG"
        assert plot.width == 990


def test_plots_do_not_depend_on_the_style_of_the_process_and_leave_it() -> None:
    plain = png(figures(viewed())["layer.conv"])
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        assert png(figures(viewed())["layer.conv"]) == plain
        assert dict(matplotlib.rcParams) == before


def test_plots_can_be_drawn_in_threads() -> None:
    before = dict(matplotlib.rcParams)
    (plain,) = {png(figures(viewed())["channels"])}
    with ThreadPoolExecutor(2) as threads:
        found = set(threads.map(lambda _: png(figures(viewed())["channels"]), range(4)))
    assert found == {plain}
    assert dict(matplotlib.rcParams) == before
    assert type(figures(step())["channels"].canvas) is FigureCanvasAgg


def test_a_name_is_no_formula() -> None:
    assert png(figures(replace(step(), layers={r"a$\frac$b": (2, 1)}))["channels"])


def test_files_have_names_that_every_system_takes_and_groups_share_none() -> None:
    assert layer_plot("net.a-1_b") == "layer.net.a-1_b"
    names = ["net.a/b", "net.a_b", "net.a b", "net.ä", "net.a<b>"]
    files = [layer_plot(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(c.isascii() and (c.isalnum() or c in "._-%") for file in files for c in file)
