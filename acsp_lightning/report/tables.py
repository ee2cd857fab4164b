"""Cuts as text, for terminals and logs."""

import io
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.report.step import PruningStep
from acsp_lightning.report.times import HEAD, NOTE, change, layer_rows, milliseconds, summary
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.selection.tradeoff import TradeOff

TABLE_WIDTH = 80  # of the narrowest usual terminal
SPEED_WIDTH = 9  # of a column more
MOST_LAYERS = 10  # whose times are printed; the page has all

ENDS_AVERAGED = ("the accuracy at the end is that of averaged weights",)


def headline(step: PruningStep) -> str:
    """One cut as one line of text."""
    before, after = step.before, step.after
    changed = sum(old != new for old, new in step.layers.values())
    facts = [
        f"{changed} of {len(step.layers)} layers are narrower",
        f"parameters {before.parameters:,} -> {after.parameters:,}",
        f"FLOPs {before.flops:,} -> {after.flops:,} ({before.flops / after.flops:.2f}x less)",
    ]
    if step.accuracy_before is not None and step.accuracy_after is not None:
        facts.append(f"accuracy {step.accuracy_before:.2%} -> {step.accuracy_after:.2%}")
    if step.times is not None:
        facts.append(change(step.times))
    for found in step.latency:
        times = f"{milliseconds(found.before.median)} -> {milliseconds(found.after.median)} ms"
        facts.append(f"{times} for a batch of {found.before.batch_size}")
    return f"{step.title}: {', '.join(facts)}"


def step_table(step: PruningStep) -> str:
    """One cut as text: channels per layer, then the network before and straight after it."""
    table = _table(step.title, ("", "before", "straight after"))
    _add_layers(table, step.layers)
    _add_counts(table, (step.before, step.after))
    _add_latency(table, step.latency)
    _add_accuracies(table, (step.accuracy_before, step.accuracy_after), averaged=step.averaged)
    notes = [*comparison_notes(step.comparison), *norms_notes(step)]
    if step.times is None:
        return _text(table, step.after, notes)
    layers = _table("Layers that hold the network back", HEAD)
    *timed, rest = layer_rows(step.times)
    for row in [*timed[:MOST_LAYERS], rest]:
        layers.add_row(*row)
    network = _text(table, step.after, [*notes, summary(step.times)])
    return f"{network}\n\n{_text(layers, None, [NOTE])}"


def trade_off_table(trade_off: TradeOff) -> str:
    """What cuts of several depths cost, as text: a row for each, from the uncut network down."""
    uncut = trade_off.depths[0]
    sizes = list(uncut.speedups)
    timed = uncut.seconds is not None
    columns = ["FLOPs", *["ms"] * timed, "params", *(f"speed,\nbatch\n{size}" for size in sizes)]
    columns += ["accuracy", "lost, points", "same\nclass", "widths", ""]
    table = _table("What a cut costs, before any training", columns)
    for place, depth in enumerate(trade_off.depths):
        found = depth.fidelity
        kept = [depth.widths[name] / width for name, width in uncut.widths.items()]
        table.add_row(
            f"{depth.flops / uncut.flops:.1%}",
            *([] if depth.seconds is None else [milliseconds(depth.seconds)]),
            f"{depth.parameters / uncut.parameters:.1%}",
            *(f"{depth.speedups[size]:.2f}x" for size in sizes),
            f"{found.accuracy:.2%}",
            f"{100 * found.drop.mean:.2f} ± {100 * found.drop.error:.2f}" if place else "",
            f"{found.agreement.mean:.1%}" if place else "",
            f"{100 * min(kept):.0f}-{max(kept):.0%}",
            "\n".join(marks(trade_off, place)),
        )
    width = TABLE_WIDTH + SPEED_WIDTH * (len(sizes) + timed)
    notes = [trade_off_note(trade_off)]
    if timed:
        notes.append("milliseconds are predicted from the networks and layers that were timed")
    return _text(table, None, notes, width)


def trade_off_note(trade_off: TradeOff) -> str:
    """What the figures of a trade-off are."""
    return (
        f"measured on {trade_off.depths[0].fidelity.samples:,} samples held back from the capture; ± is "
        "the standard error; widths are the shares of channels that groups keep"
    )


def marks(trade_off: TradeOff, place: int) -> list[str]:
    """What a depth of a trade-off is: the knee, the deepest within the tolerance, a target."""
    found = [f"flops={share}" for share, at in trade_off.targets.items() if at == place]
    if place == trade_off.in_time:
        found.append("latency")
    if place == trade_off.knee:
        found.append("knee")
    if place == trade_off.tolerated:
        found.append("tolerance")
    return found


def summary_table(
    steps: Sequence[PruningStep],
    final: Complexity,
    final_accuracy: float | None,
    *,
    ends_averaged: bool = False,
) -> str:
    """All cuts of a run as text: before the first, straight after the last, and at the end.

    Latencies are shown for a single cut only: those of several were not measured in one run.

    Args:
        steps: the cuts, at least one; those that were rolled back are left out.
        final: complexity of the network at the end.
        final_accuracy: its top-1 accuracy, as in :class:`PruningStep`.
        ends_averaged: whether it is that of averaged weights while the other accuracies are not.
    """
    standing = [step for step in steps if not step.rolled_back]
    if not standing:
        return _uncut_table(steps, final, final_accuracy, ends_averaged=ends_averaged)
    first, last = standing[0], standing[-1]
    layers: dict[str, tuple[int, int]] = {}
    for step in standing:
        for name, (before, after) in step.layers.items():
            layers[name] = (layers.get(name, (before, 0))[0], after)
    single = len(standing) == 1
    title = "Pruned in one cut" if single else f"Pruned in {len(standing)} cuts"
    columns = ("", "before", "straight after" if single else "after the last", "at the end")
    table = _table(title, columns)
    _add_layers(table, layers)
    _add_counts(table, (first.before, last.after, final))
    if single:
        _add_latency(table, first.latency)
    accuracies = (first.accuracy_before, last.accuracy_after, final_accuracy)
    _add_accuracies(table, accuracies, averaged=last.averaged)
    return _text(table, final, ENDS_AVERAGED if ends_averaged else ())


def _uncut_table(
    steps: Sequence[PruningStep],
    final: Complexity,
    final_accuracy: float | None,
    *,
    ends_averaged: bool,
) -> str:
    """The network before cuts of which none stands, and at the end."""
    table = _table("No cut was kept", ("", "before", "at the end"))
    _add_counts(table, (steps[0].before, final))
    accuracies = (steps[0].accuracy_before, final_accuracy)
    _add_accuracies(table, accuracies, averaged=steps[0].averaged)
    return _text(table, final, ENDS_AVERAGED if ends_averaged else ())


def verdict_line(step: PruningStep) -> str:
    """What the accuracy guard did with a cut, as one line of text; for a cut that has a verdict."""
    verdict = step.verdict
    assert verdict is not None, "a cut without a verdict"
    name = f"cut after epoch {step.epoch}{', again,' if step.again else ''}"
    after = "?" if verdict.after is None else f"{verdict.after:.4f}"
    allowed = "" if verdict.allowed is None else f", allowed {verdict.allowed:.4f}"
    values = f"{verdict.monitor} {verdict.before:.4f} -> {after}{allowed}"
    return f"Guard: {name} {verdict.outcome} ({values})"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


def _add_layers(table: Table, layers: Mapping[str, tuple[int, int]]) -> None:
    for name, (before, after) in layers.items():
        table.add_row(name, str(before), *[str(after)] * (len(table.columns) - 2))
    table.add_section()


def _add_counts(table: Table, complexities: Sequence[Complexity]) -> None:
    for name, counts in (
        ("parameters", [c.parameters for c in complexities]),
        ("FLOPs (fvcore)", [c.flops for c in complexities]),
    ):
        before, after, *end = counts
        ratio = "" if before == after else f" ({before / after:.2f}x less)"
        table.add_row(name, f"{before:,}", f"{after:,}{ratio}", *(f"{count:,}" for count in end))


def _add_latency(table: Table, comparisons: Sequence[LatencyComparison]) -> None:
    for found in comparisons:
        kind = found.before.device.partition(":")[0]
        name = f"latency, batch {found.before.batch_size} ({kind}, ms)"
        gain = found.speedup
        ratio = f"{gain:.2f}x faster" if gain >= 1 else f"{1 / gain:.2f}x slower"
        before, after = milliseconds(found.before.median), milliseconds(found.after.median)
        table.add_row(name, before, f"{after} ({ratio})", *["-"] * (len(table.columns) - 3))


def _add_accuracies(table: Table, accuracies: Sequence[float | None], *, averaged: bool) -> None:
    name = "accuracy (averaged weights)" if averaged else "accuracy"
    table.add_row(name, *("-" if a is None else f"{a:.2%}" for a in accuracies))


def comparison_notes(comparison: Comparison) -> list[str]:
    """Notes on classes left out and on sampled pairs; empty if all were compared."""
    lines = []
    if comparison.unseen:
        lines.append(f"{comparison.unseen} classes had fewer than two samples and were left out")
    if comparison.sampling_error:
        lines.append(
            f"{comparison.class_pairs:,} class pairs were drawn at random: distances are right to "
            f"{comparison.sampling_error:.1%} of their median"
        )
    return lines


def norms_notes(step: PruningStep) -> list[str]:
    """A note that names the layers that a cut approximates; none if it is exact."""
    if not step.norms:
        return []
    return [f"approximate, with the norm over the kept channels: {', '.join(step.norms)}"]


def _text(
    table: Table, counted: Complexity | None, notes: Sequence[str] = (), width: int = TABLE_WIDTH
) -> str:
    lines = list(notes)
    if counted is not None and counted.unused:
        idle = ", ".join(f"{name} ({number:,})" for name, number in counted.unused.items())
        lines.append(f"not in the parameters, since forward does not use them: {idle}")
    if counted is not None and counted.unsupported:
        lines.append("not in the FLOPs: " + ", ".join(counted.unsupported))
    table.caption = "\n".join(lines) or None
    table.caption_justify = "left"
    sink = io.StringIO()
    Console(file=sink, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().rstrip().splitlines())
