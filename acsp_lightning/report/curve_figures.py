"""Plots of the curves that decide how much is cut."""

import math
import textwrap
from collections.abc import Mapping

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from acsp_lightning.functional import ChannelSelection
from acsp_lightning.report.drawing import AFTER, FAINT, MARK, house_style, new_figure, shortened
from acsp_lightning.report.tables import marks
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.tradeoff import TradeOff

COLUMNS = 3  # of small multiples


@house_style()
def trade_off_figure(trade_off: TradeOff, chosen: float) -> Figure:
    """Accuracy of measured cuts over their FLOPs, with standard errors.

    Args:
        trade_off: the measured cuts.
        chosen: share of the FLOPs that the cut keeps.
    """
    uncut = trade_off.depths[0]
    shares = [depth.flops / uncut.flops for depth in trade_off.depths]
    found = [depth.fidelity for depth in trade_off.depths]
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    axes.errorbar(
        shares,
        [one.accuracy for one in found],
        [one.drop.error for one in found],
        color=AFTER,
        marker=".",
        capsize=2,
        label="accuracy ± standard error of the loss",
    )
    agreement = [one.agreement.mean for one in found]
    axes.plot(
        shares, agreement, color=FAINT, label="share put into the same class\nas by the uncut network"
    )
    axes.axvline(chosen, color=MARK, linestyle="--", label=f"this cut: {chosen:.0%} of the FLOPs")
    for place, share in enumerate(shares):
        if names := marks(trade_off, place):
            axes.plot(share, found[place].accuracy, "o", color=MARK)
            axes.annotate(
                ", ".join(names), (share, found[place].accuracy), (4, -12), textcoords="offset points"
            )
    axes.set_xlabel("FLOPs kept")
    axes.set_ylabel("top-1 accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    return figure


@house_style()
def network_figure(curve: NetworkCurve, chosen: float, decides: bool) -> Figure:
    """Damage to the network over its FLOPs, with the cut that was chosen.

    Args:
        curve: curve of the network.
        chosen: share of the FLOPs that the cut keeps.
        decides: whether the knee of the curve decided it; it is shown then.
    """
    figure = new_figure(3.6)
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


@house_style()
def curves_figure(selections: Mapping[str, ChannelSelection]) -> Figure:
    """The deciding curve of every group over the number of clusters, with its knee and the width."""
    rows = -(-len(selections) // COLUMNS)
    figure = new_figure(0.5 + 2.1 * rows)
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
    axes.set_title("\n".join([shortened(name), *why]), fontsize=7, loc="left")
    axes.set_xlim(0, selection.width)
    axes.set_ylim(-0.02, 1.05)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
