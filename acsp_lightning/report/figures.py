"""Plots of a cut, each a function of its record alone."""

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any
from urllib.parse import quote

import torch
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, PercentFormatter
from torch import Tensor

from acsp_lightning.functional import ChannelSelection, ClassSeparation, LostPair, WidthReason
from acsp_lightning.report.step import PruningStep
from acsp_lightning.selection.maps import GroupMap
from acsp_lightning.selection.path import NetworkCurve

DPI = 110
WIDTH = 9.0  # inches; the page need not shrink it
TALLEST = 590.0  # inches; the renderer is limited to fewer than 2 ** 16 pixels
BEFORE, AFTER, MARK, FAINT = "#b8c4d0", "#0072b2", "#d55e00", "#8a8a8a"
# The palette of Okabe and Ito, safe for colour blindness.
CLUSTERS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
ALONE = "#c4c4c4"
BLANK = "#dddddd"
COLUMNS = 3  # of small multiples
LONGEST_NAME = 36
MOST_TICKS = 10
LEAST_SHARE = 0.02  # of the largest layer; norms would crowd out the layers that matter
MOST_INDICES = 40  # that are legible on a map
MOST_STRESS = 0.4  # of a map that is drawn
MOST_LINES = 150  # channels whose lines to their medoids can still be followed
RING_KEY = "ring: kept      size: contribution"
ALONE_KEY = "grey: cluster of one channel"
CLUSTER_KEY = "a cluster and its medoid\n(distant clusters may share a colour)"
MOST_CLASSES = 30  # that a matrix shows; of more, the worst pairs are named
LONGEST_CLASS = 16
# Widths that a group's own curve decides; what did not decide is not drawn.
BY_CURVE = (WidthReason.KNEE, WidthReason.NO_KNEE, WidthReason.LEVEL)
LEAST_LOSS = 0.2  # JM, minimum range of the scale of losses, so that tiny ones look tiny

STYLE = {"font.size": 8, "axes.titlesize": 8, "text.parse_math": False}  # $ in a name is no formula
_STYLING = RLock()


@contextmanager
def _house_style() -> Iterator[None]:
    """Draw in a fixed style, whatever the style of the process, and restore that."""
    # rc parameters are global to the process: two threads would restore each other's.
    with _STYLING, style.context(["default", STYLE]):
        yield


def step_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """Yield all plots of a cut, with their file names without extension."""
    yield from summary_figures(step)
    deciding = {name: chosen for name, chosen in step.selections.items() if chosen.reason in BY_CURVE}
    if deciding:
        yield "curves", curves_figure(deciding)
    for name, view in step.maps.items():
        yield layer_plot(name), layer_figure(name, step.selections[name], view, step.class_name)


def summary_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """Yield the plots of the whole network."""
    if step.network is not None:
        reasons = {chosen.reason for chosen in step.selections.values()}
        decides = WidthReason.NETWORK_KNEE in reasons
        yield "network", network_figure(step.network, step.after.flops / step.before.flops, decides)
    yield "channels", bars_figure(step.layers, "output channels")
    before, after = step.before.by_layer, step.after.by_layer
    least = LEAST_SHARE * max(before.values(), default=0)
    flops = {name: (old, after.get(name, 0)) for name, old in before.items() if old >= least}
    small = len(before) - len(flops)
    rest = f"; {small} layers with less than {LEAST_SHARE:.0%} of the largest are left out"
    yield "flops", bars_figure(flops, f"FLOPs{rest if small else ''}")


def layer_plot(name: str) -> str:
    """File name of the plot of a group: in ASCII, unique."""
    return f"layer.{quote(name, safe='')}"


@_house_style()
def png(figure: Figure) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, metadata={"Software": None})
    return sink.getvalue()


@_house_style()
def bars_figure(widths: Mapping[str, tuple[int, int]], what: str) -> Figure:
    """Bars of a quantity of every layer, before and after a cut.

    Args:
        widths: values before and after, by layer.
        what: label of the quantity.
    """
    figure = _figure(1 + 0.22 * max(len(widths), 3))
    axes = figure.add_subplot()
    places = range(len(widths))
    wide = axes.barh(places, [old for old, _ in widths.values()], 0.8, color=BEFORE, label="before")
    axes.barh(places, [new for _, new in widths.values()], 0.45, color=AFTER, label="after")
    axes.bar_label(wide, [f"{new / old:.0%}" for old, new in widths.values()], padding=3, fontsize=7)
    axes.set_yticks(places, [_short(name) for name in widths], fontsize=7)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


@_house_style()
def network_figure(curve: NetworkCurve, chosen: float, decides: bool) -> Figure:
    """Damage to the network over its FLOPs, with the cut that was chosen.

    Args:
        curve: curve of the network.
        chosen: share of the FLOPs that the cut keeps.
        decides: whether the knee of the curve decided it; it is shown then.
    """
    figure = _figure(3.6)
    axes = figure.add_subplot()
    shares = [flops / curve.flops[0] for flops in curve.flops]
    largest = max(curve.damage[-1], torch.finfo(torch.float64).tiny)
    damage = [math.sqrt(max(lost, 0.0) / largest) for lost in curve.damage]
    axes.plot(shares, damage, color=AFTER, label="path of least damage")
    axes.axvline(chosen, color=MARK, linestyle="--", label=f"this cut: {chosen:.0%} of the FLOPs")
    if decides and curve.knee is not None:
        at = curve.knee
        axes.plot(shares[at], damage[at], "o", color=MARK, label=f"knee: {shares[at]:.0%}")
    axes.set_xlabel("FLOPs kept")
    axes.set_ylabel("damage relative to the\ndeepest cut (square root)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


@_house_style()
def curves_figure(selections: Mapping[str, ChannelSelection]) -> Figure:
    """The deciding curve of every group over the number of clusters, with its knee and the width."""
    rows = -(-len(selections) // COLUMNS)
    figure = _figure(0.5 + 2.1 * rows)
    cells = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flatten().tolist()
    handles: dict[str, Artist] = {}
    for name, selection in selections.items():
        axes = cells.pop(0)
        _draw_curves(axes, name, selection)
        drawn, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, drawn, strict=True))
    for axes in cells:
        axes.set_axis_off()
    figure.supxlabel("number of clusters k", fontsize=8)
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=4, frameon=False)
    return figure


def _draw_curves(axes: Axes, name: str, selection: ChannelSelection) -> None:
    ks = selection.ks.tolist()
    label = "coverage" if selection.decided_by == "coverage" else "mean simplified silhouette"
    axes.plot(ks, selection.curve.tolist(), color=AFTER, label=label)
    axes.axvline(selection.k, color=MARK, linestyle="--", label="channels kept")
    if selection.knee is not None:
        height = float(selection.curve[ks.index(selection.knee)])
        axes.plot(selection.knee, height, "o", color=MARK, label="knee of the layer")
    why = textwrap.wrap(f"{selection.k} of {selection.width}: {selection.reason}", 50)
    axes.set_title("\n".join([_short(name), *why]), fontsize=7, loc="left")
    axes.set_xlim(0, selection.width)
    axes.set_ylim(-0.02, 1.05)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


@_house_style()
def layer_figure(
    name: str, selection: ChannelSelection, view: GroupMap, class_name: Callable[[int], str] = str
) -> Figure:
    """The map of a group's channels, and the classes that they separate before and after.

    Args:
        name: name of the group.
        selection: its channels to keep.
        view: its map.
        class_name: name of a class by its index.
    """
    figure = _figure(5.0)
    figure.suptitle(f"{_short(name, 70)}: {selection.width} → {selection.k} channels", fontsize=9)
    rows: list[Any] = (
        [["pairs"]] if names_pairs(view.classes) else [["before", "after"], ["lost", "scales"]]
    )
    ratios = [1.0] * len(rows[0])
    if shows_map(view):
        rows = [["map", *row] for row in rows]
        ratios = [1.3 if len(rows) == 1 else 2.2, *ratios]
    cells = figure.subplot_mosaic(rows, width_ratios=ratios)
    if shows_map(view):
        _draw_map(cells["map"], selection, view)
    if names_pairs(view.classes):
        _draw_pairs(cells["pairs"], view.classes.worst, class_name)
        return figure
    before, after = view.classes.before, view.classes.after
    lost = before - after
    most = max(float(lost.nan_to_num().max()), LEAST_LOSS)
    names = [
        class_name(first) if first == last else f"{first}-{last}" for first, last in view.classes.ranges
    ]
    _draw_classes(cells["before"], f"all {selection.width} channels", before, names, 2, "viridis")
    told = _draw_classes(cells["after"], f"the {selection.k} kept", after, names, 2, "viridis")
    gone = _draw_classes(cells["lost"], "lost", lost, names, most, "YlOrRd")
    cells["before"].tick_params(labelbottom=False)
    cells["after"].tick_params(labelleft=False)
    cells["scales"].set_axis_off()
    for height, image, words in (
        (0.85, told, "Jeffries-Matusita distance of two\nclasses, by the best channel"),
        (0.4, gone, "loss of this distance"),
    ):
        scale = cells["scales"].inset_axes((0.05, height, 0.9, 0.07))
        figure.colorbar(image, cax=scale, orientation="horizontal")
        scale.set_xlabel(words, fontsize=7)
        scale.tick_params(labelsize=6.5)
    return figure


def _draw_classes(
    axes: Axes,
    title: str,
    values: Tensor,
    names: Sequence[str],
    most: float,
    colours: str,
) -> AxesImage:
    image = axes.imshow(values.numpy(), vmin=0, vmax=most, cmap=colours, interpolation="nearest")
    axes.set_facecolor(BLANK)
    axes.set_title(title, fontsize=8)
    ticks = range(0, len(names), -(-len(names) // MOST_TICKS))
    shown = [_short(names[tick], LONGEST_CLASS) for tick in ticks]
    axes.set_xticks(ticks, shown, fontsize=6.5, rotation=90 if max(map(len, shown)) > 2 else 0)
    axes.set_yticks(ticks, shown, fontsize=6.5)
    return image


def names_pairs(classes: ClassSeparation) -> bool:
    """Whether the pairs that lose most are named: a matrix of so many classes would be a blot."""
    many = len(classes.ranges) > MOST_CLASSES or any(first != last for first, last in classes.ranges)
    return many and bool(classes.worst)


def _draw_pairs(axes: Axes, pairs: Sequence[LostPair], class_name: Callable[[int], str]) -> None:
    places = range(len(pairs))
    before, after = [pair.before for pair in pairs], [pair.after for pair in pairs]
    axes.hlines(places, after, before, color=FAINT, linewidth=1, zorder=1)
    axes.scatter(before, places, 26, BEFORE, label="by the best of all channels", zorder=2)
    axes.scatter(after, places, 26, AFTER, label="by the best of those kept", zorder=2)
    names = [
        " | ".join(_short(class_name(index), LONGEST_CLASS) for index in (pair.first, pair.second))
        for pair in pairs
    ]
    axes.set_yticks(places, names, fontsize=7)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlim(-0.05, 2.05)
    axes.set_xlabel("Jeffries-Matusita distance", fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("the pairs of classes that lose most", fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), fontsize=7, frameon=False)


def shows_map(view: GroupMap) -> bool:
    """Whether the map of a group is drawn; beyond some stress its distances mean nothing."""
    return view.stress <= MOST_STRESS


def clusters_decide(selection: ChannelSelection) -> bool:
    """Whether one channel of every cluster stays; other criteria take no notice of clusters."""
    clusters = selection.labels[selection.kept]
    return torch.equal(clusters.sort().values, torch.arange(selection.k))


def _draw_map(axes: Axes, selection: ChannelSelection, view: GroupMap) -> None:
    shown, places = view.channels, view.places
    weight = selection.weights[shown]
    size = 18 + 80 * weight / weight.max().clamp(min=torch.finfo(weight.dtype).tiny)
    where = dict(zip(shown.tolist(), places.tolist(), strict=True))
    clustered = clusters_decide(selection)
    middle = selection.medoids[selection.labels[shown]].tolist()
    lined = len(shown) <= MOST_LINES
    if clustered and lined:
        ends = zip(shown.tolist(), middle, strict=True)
        lines = [(where[one], where[other]) for one, other in ends if other != one and other in where]
        axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.6, zorder=1))
    across, up = places.T.tolist()
    colours = _colours(selection, view) if clustered else [AFTER] * len(shown)
    axes.scatter(across, up, size.tolist(), colours, linewidths=0, zorder=2)
    kept = torch.isin(shown, selection.kept)
    across, up = places[kept].T.tolist()
    rings = (size[kept] + 40).tolist()
    axes.scatter(across, up, rings, facecolors="none", edgecolors="black", zorder=3)
    if len(selection.kept) <= MOST_INDICES:
        for channel in shown[kept].tolist():
            number = axes.annotate(
                str(channel), where[channel], (5, 4), textcoords="offset points", fontsize=7
            )
            number.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
    some = f"{len(shown)} of {selection.width} channels" if len(shown) < selection.width else "channels"
    axes.set_title(f"{some}; close ones separate the same classes\n{_trust(view.stress)}")
    marks = "colour and lines" if lined else "colour"
    key = f"{RING_KEY}      {ALONE_KEY}\n{marks}: {CLUSTER_KEY}" if clustered else RING_KEY
    axes.set_xlabel(key, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.1)
    axes.set_aspect("equal", "datalim")


def _trust(stress: float) -> str:
    """How accurate a map of this stress is, in words."""
    quality = "nearly right" if stress < 0.1 else "about right" if stress < 0.3 else "only a hint"
    return f"distances on the map are {quality} (stress {stress:.2f})"


def _colours(selection: ChannelSelection, view: GroupMap) -> list[str]:
    """A colour for each channel on the map; clusters that share one lie far apart."""
    sizes = selection.labels.bincount().tolist()
    clusters = selection.labels[view.channels]
    found: dict[int, str] = {}
    taken: dict[str, list[Tensor]] = {colour: [] for colour in CLUSTERS}
    for cluster in sorted(set(clusters.tolist())):
        if sizes[cluster] == 1:
            found[cluster] = ALONE
            continue
        centre = view.places[clusters == cluster].mean(0)
        nearest = {
            colour: min((float((centre - other).norm()) for other in others), default=math.inf)
            for colour, others in taken.items()
        }
        found[cluster] = max(nearest, key=nearest.__getitem__)
        taken[found[cluster]].append(centre)
    return [found[cluster] for cluster in clusters.tolist()]


def _figure(height: float) -> Figure:
    # No pyplot: no GUI backend and no global state, and figures may be drawn in any thread.
    figure = Figure(figsize=(WIDTH, min(height, TALLEST)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _short(name: str, most: int = LONGEST_NAME) -> str:
    if len(name) <= most:
        return name
    return f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
