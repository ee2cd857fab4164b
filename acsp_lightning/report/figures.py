"""Pictures of a cut, each a function of its record alone."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from acsp_lightning.functional import ChannelSelection, ClassSeparation
from acsp_lightning.report.step import PruningStep
from acsp_lightning.views import GroupView

DPI = 110
BEFORE, AFTER, MARK = "#b8c4d0", "#1f6fb2", "#d9480f"
COLUMNS = 4  # of small multiples
LONGEST_NAME = 34
MOST_TICKS = 11
LEAST_SHARE = 0.002  # of the FLOPs; norms would hide the layers that matter
MOST_INDICES = 40  # that can be told apart on a map
MOST_LINES = 100  # channels whose lines to their medoids can still be followed


def step_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """All pictures of a cut, one after the other, by the names of their files without ending."""
    yield from summary_figures(step)
    if step.selections:
        yield "curves", curves_figure(step.selections)
    for name, view in step.views.items():
        yield layer_picture(name), layer_figure(name, step.selections[name], view)


def summary_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """The pictures of the whole network."""
    if step.network is not None:
        yield "network", network_figure(step)
    yield "channels", bars_figure(step.layers, "output channels")
    yield "flops", bars_figure(_large_layers(step), f"FLOPs (layers with at least {LEAST_SHARE:.1%})")


def _large_layers(step: PruningStep) -> dict[str, tuple[int, int]]:
    least = LEAST_SHARE * step.before.flops
    after = step.after.by_layer
    return {name: (f, after.get(name, 0)) for name, f in step.before.by_layer.items() if f >= least}


def layer_picture(name: str) -> str:
    """Name of the picture of a group."""
    return "layer." + "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def png(figure: Figure) -> bytes:
    """The picture as PNG; equal figures give equal bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, metadata={"Software": None})
    return sink.getvalue()


def bars_figure(widths: Mapping[str, tuple[int, int]], what: str) -> Figure:
    """Bars of what every layer has before and after a cut."""
    figure = _figure(8, 1.1 + 0.24 * max(len(widths), 2))
    axes = figure.add_subplot()
    places = range(len(widths))
    axes.barh(places, [before for before, _ in widths.values()], 0.8, color=BEFORE, label="before")
    axes.barh(places, [after for _, after in widths.values()], 0.5, color=AFTER, label="after")
    axes.set_yticks(places, [_short(name) for name in widths], fontsize=7)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.set_xlabel(what)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def network_figure(step: PruningStep) -> Figure:
    """Damage to the network over its FLOPs, with the knee and the cut that was chosen."""
    assert step.network is not None, "no curve of the network"
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    whole = step.network.flops[0]
    shares = [flops / whole for flops in step.network.flops]
    largest = max(step.network.damage[-1], torch.finfo(torch.float64).tiny)
    damage = [math.sqrt(max(lost, 0.0) / largest) for lost in step.network.damage]
    axes.plot(shares, damage, color=AFTER, label="cheapest way down")
    chosen = step.after.flops / step.before.flops
    axes.axvline(chosen, color=MARK, linestyle="--", label=f"this cut: {chosen:.0%} of the FLOPs")
    if step.network.knee is not None:
        at = step.network.knee
        axes.plot(shares[at], damage[at], "o", color=MARK, label=f"knee: {shares[at]:.0%}")
    axes.set_xlabel("share of the FLOPs that stays")
    axes.set_ylabel("damage (root, 1 is the deepest cut)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def curves_figure(selections: Mapping[str, ChannelSelection]) -> Figure:
    """The curves of every group over the number of clusters, with its knee and what was taken."""
    columns = min(COLUMNS, len(selections))
    rows = -(-len(selections) // columns)
    figure = _figure(3 * columns + 0.6, 2.3 * rows + 0.6)
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, selection) in zip(cells, selections.items(), strict=False):
        _draw_curves(axes, name, selection)
    for axes in cells[len(selections) :]:
        axes.set_axis_off()
    handles: dict[str, Artist] = {}
    for axes in cells:
        drawn, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, drawn, strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _draw_curves(axes: Axes, name: str, selection: ChannelSelection) -> None:
    ks = selection.ks.tolist()
    for label, values, colour in (
        ("coverage", selection.coverage, AFTER),
        ("mean simplified silhouette", selection.mss, "#7a7a7a"),
    ):
        decides = selection.decided_by == ("coverage" if label == "coverage" else "mss")
        axes.plot(ks, values.tolist(), color=colour, alpha=1.0 if decides else 0.45, label=label)
    axes.axvline(selection.k, color=MARK, linestyle="--", label="channels kept")
    if selection.knee is not None:
        at = selection.ks.tolist().index(selection.knee)
        axes.plot(selection.knee, float(selection.curve[at]), "o", color=MARK, label="knee of the layer")
    axes.set_title(f"{_short(name)}\n{selection.k} of {selection.width}", fontsize=7)
    axes.set_xlim(0, selection.width)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def layer_figure(name: str, selection: ChannelSelection, view: GroupView) -> Figure:
    """The map of a group's channels, and the classes that they tell apart before and after."""
    figure = _figure(12, 4.2)
    figure.suptitle(f"{_short(name, 80)}: {selection.k} of {selection.width} channels stay", fontsize=10)
    places, *maps = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    _draw_map(places, selection, view)
    for axes, title, values in zip(
        maps,
        ("all channels", "the channels kept"),
        (view.classes.before, view.classes.after),
        strict=True,
    ):
        image = axes.imshow(values.numpy(), vmin=0, vmax=2, cmap="viridis", interpolation="nearest")
        axes.set_title(f"class against class, by the best of {title}", fontsize=8)
        _label_classes(axes, view.classes)
    bar = figure.colorbar(image, ax=maps, shrink=0.8)
    bar.set_label("Jeffries-Matusita distance", fontsize=8)
    return figure


def _draw_map(axes: Axes, selection: ChannelSelection, view: GroupView) -> None:
    shown, places = view.channels, view.places
    cluster = selection.labels[shown]
    weight = selection.weights[shown]
    size = 18 + 90 * weight / max(float(weight.max()), torch.finfo(weight.dtype).tiny)
    where = {channel: place for channel, place in zip(shown.tolist(), places.tolist(), strict=True)}
    for channel, own in zip(shown.tolist(), cluster.tolist(), strict=True):
        medoid = int(selection.medoids[own])
        if len(shown) <= MOST_LINES and medoid in where and medoid != channel:
            ends = [where[channel], where[medoid]]
            axes.plot(*zip(*ends, strict=True), color="#999999", linewidth=0.5, zorder=1)
    colours = _colours(cluster.tolist())
    across, up = places.T.tolist()
    axes.scatter(across, up, s=size.tolist(), c=colours, alpha=0.8, linewidths=0, zorder=2)
    kept = torch.isin(shown, selection.kept)
    across, up = places[kept].T.tolist()
    axes.scatter(
        across,
        up,
        s=(size[kept] + 40).tolist(),
        facecolors="none",
        edgecolors="black",
        linewidths=1.1,
        zorder=3,
        label="kept",
    )
    if len(selection.kept) <= MOST_INDICES:
        for channel in selection.kept.tolist():
            axes.annotate(str(channel), where[channel], fontsize=6, ha="center", va="center", zorder=4)
    axes.set_title(f"channels by what they separate (stress {view.stress:.2f})", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.08)
    axes.legend(fontsize=7, loc="best")


def _label_classes(axes: Axes, classes: ClassSeparation) -> None:
    names = [str(first) if first == last else f"{first}-{last}" for first, last in classes.ranges]
    every = max(1, -(-len(names) // MOST_TICKS))
    ticks = range(0, len(names), every)
    axes.set_xticks(ticks, [names[tick] for tick in ticks], fontsize=6, rotation=90 if every > 1 else 0)
    axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=6)


def _colours(clusters: Sequence[int]) -> list[tuple[float, ...]]:
    """Clusters that follow each other get hues that are far apart, by steps of the golden ratio."""
    return [
        tuple(hsv_to_rgb((c * 0.618 % 1, 0.55 + 0.35 * (c % 2), 0.6 + 0.3 * (c % 3) / 2)))
        for c in clusters
    ]


def _figure(width: float, height: float) -> Figure:
    # No pyplot: no window system, no state of the process, and figures may be drawn in any thread.
    figure = Figure(figsize=(width, min(height, 300)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _short(name: str, most: int = LONGEST_NAME) -> str:
    if len(name) <= most:
        return name
    return f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
