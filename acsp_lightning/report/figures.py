"""Plots of a cut, each a function of its record alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter
from torch import Tensor

from acsp_lightning.functional import ChannelSelection, ClassSeparation, LostPair, WidthReason
from acsp_lightning.report.curve_figures import curves_figure, network_figure, trade_off_figure
from acsp_lightning.report.drawing import AFTER, BEFORE, FAINT, house_style, new_figure, shortened
from acsp_lightning.report.step import PruningStep
from acsp_lightning.selection.maps import GroupMap

# The palette of Okabe and Ito, safe for colour blindness.
CLUSTERS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
ALONE = "#c4c4c4"
BLANK = "#dddddd"
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
    if step.trade_off is not None:
        yield "trade_off", trade_off_figure(step.trade_off, step.after.flops / step.before.flops)
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


@house_style()
def bars_figure(widths: Mapping[str, tuple[int, int]], what: str) -> Figure:
    """Bars of a quantity of every layer, before and after a cut.

    Args:
        widths: values before and after, by layer.
        what: label of the quantity.
    """
    figure = new_figure(1 + 0.22 * max(len(widths), 3))
    axes = figure.add_subplot()
    places = range(len(widths))
    wide = axes.barh(places, [old for old, _ in widths.values()], 0.8, color=BEFORE, label="before")
    axes.barh(places, [new for _, new in widths.values()], 0.45, color=AFTER, label="after")
    axes.bar_label(wide, [f"{new / old:.0%}" for old, new in widths.values()], padding=3, fontsize=7)
    axes.set_yticks(places, [shortened(name) for name in widths], fontsize=7)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


@house_style()
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
    figure = new_figure(5.0)
    figure.suptitle(f"{shortened(name, 70)}: {selection.width} → {selection.k} channels", fontsize=9)
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
    shown = [shortened(names[tick], LONGEST_CLASS) for tick in ticks]
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
        " | ".join(shortened(class_name(index), LONGEST_CLASS) for index in (pair.first, pair.second))
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
