"""The report page of a cut: one self-contained HTML file that includes the plots."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from acsp_lightning.functional import ChannelSelection, ClassSeparation, WidthReason
from acsp_lightning.report.classes import class_rows, pair_cells
from acsp_lightning.report.figures import (
    MOST_STRESS,
    clusters_decide,
    layer_plot,
    names_pairs,
    shows_map,
)
from acsp_lightning.report.step import PruningStep
from acsp_lightning.report.tables import comparison_notes, norms_notes, verdict_line
from acsp_lightning.report.times import HEAD, NOTE, layer_rows, milliseconds, summary

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #0062a3; }
@media (prefers-color-scheme: dark) { :root { --link: #6cb8ea; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 2rem; font-size: 1.05rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .words :is(th, td):last-child { text-align: left; }
td:first-child { overflow-wrap: anywhere; min-width: 8rem; }
thead th { background: var(--soft); }
.wide { overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption, .note { font-size: .9rem; opacity: .85; }
code { font: .85rem ui-monospace, monospace; overflow-wrap: anywhere; }
nav ul { columns: 18rem; font-size: .9rem; overflow-wrap: anywhere; }
nav li { break-inside: avoid; }
a { color: var(--link); } summary { cursor: pointer; }
@media print { body { max-width: none; margin: 0; } section, figure, tr { break-inside: avoid; } }
"""

# Title and caption by the name of a plot.
NETWORK_PLOTS = {
    "trade_off": (
        "Accuracy over FLOPs",
        "Cuts of several depths along the path of least damage, each made on a copy and measured before "
        "any training, on samples held back from the capture. Read it from right to left. The dashed "
        "line is this cut. ",
    ),
    "network": (
        "Damage over FLOPs",
        "Read it from right to left: channels are removed in the order of least damage per FLOP saved. "
        "Damage is the part of the next layers' outputs that the kept channels cannot explain, weighted "
        "by what errors there were measured to do to the class scores. The dashed line is this cut. ",
    ),
    "channels": (
        "Channels of every layer",
        "Wide bars are the output channels before the cut, narrow ones those after; the number is the "
        "share kept.",
    ),
    "flops": (
        "FLOPs of every layer",
        "The same for the FLOPs of one forward pass. A layer that keeps all output channels still "
        "becomes cheaper if it has fewer input channels.",
    ),
    "curves": (
        "Curves of the groups",
        "The curve that decides, for every number k of kept channels: coverage is how well they "
        "represent all channels, weighted by contribution; the silhouette is how well the k clusters "
        "are separated. The dashed line is the number kept; the title has the reason. ",
    ),
}
# What of a plot decided the widths, added to its caption.
DECIDED = {
    "trade_off": {
        WidthReason.MEASURED_KNEE: "Its knee decided how many channels every group keeps.",
        WidthReason.NO_MEASURED_KNEE: "It has no knee, so every channel is kept.",
        WidthReason.TOLERANCE: "The deepest of these cuts that loses no more than the tolerance decided "
        "how many channels every group keeps.",
        WidthReason.NOTHING_TOLERATED: "None of them is within the tolerance, so every channel is kept.",
        WidthReason.LEAST_DAMAGE: "The FLOPs target decided.",
        WidthReason.LEAST_DAMAGE_IN_TIME: "The latency target decided.",
    },
    "network": {
        WidthReason.NETWORK_KNEE: "The knee of this curve decided how many channels every group keeps: "
        "the dot, beyond which a cut costs more than it saves.",
        WidthReason.LEAST_DAMAGE: "The FLOPs target decided: the widths are those of least damage on "
        "this curve that meet it.",
        WidthReason.LEAST_DAMAGE_IN_TIME: "The latency target decided: channels were removed in the "
        "order of least damage per second saved.",
        WidthReason.NO_NETWORK_KNEE: "It has no knee, so every channel is kept.",
    },
    "curves": {
        WidthReason.KNEE: "The knee of its own curve, the dot, decided for each of these groups.",
        WidthReason.NO_KNEE: "A curve without a knee keeps every channel.",
        WidthReason.LEVEL: "The FLOPs target decided: the widths are those at which all curves have one "
        "level, the highest that meets it.",
    },
}
MOST_CLASSES = 30  # in the table of all
WORST_CLASSES = 15  # of more
LEFT_WHOLE_NOTE = (
    "These layers cannot be cut, or only if that is asked for. The output layer is never cut, and "
    "layers that were excluded are not listed."
)
GROUPS_NOTE = "A group is a set of layers that must lose the same channels, named after the first one."
# Shown once: a large network has dozens of these plots.
HOW_TO_READ = (
    "{map}{classes} by the channel that separates them best (Jeffries-Matusita distance: 0 not at "
    "all, 2 completely): for all channels, for those kept, and the loss between the two. Channels "
    "together separate more than the best of them, and fine-tuning can recover a loss."
)
MAP = (
    "On the left of a plot every dot is a channel; close channels separate the same classes. {rings}"
    "The map shows many dimensions in two: the stress is the error of its distances, 0 if they are "
    "exact. Maps with a stress above {most} would mislead, and are left out. "
)
CLUSTERS = (
    "Channels of one colour, joined by lines, are a cluster; the one that is kept for all of them has a "
    "ring. Grey channels are clusters of one. "
)
RINGS = "Kept channels have a ring; clusters did not decide which. "
MATRICES = "In the matrices each cell is a pair of classes, with their distance"
PAIRS = "Named are the pairs of classes that lose most, with their distance"


def step_page(step: PruningStep, plots: Mapping[str, bytes]) -> str:
    """The report page of a cut as self-contained HTML.

    Args:
        step: the cut.
        plots: PNGs of :func:`acsp_lightning.report.figures.step_figures`, by name; those that are
            missing are left out.
    """
    body = "\n".join(
        [
            f"<h1>{escape(step.title)}</h1>",
            *_lead(step),
            _totals(step),
            _notes(step),
            _contents(step, plots),
            '<h2 id="layers">Layers</h2>',
            _layers(step),
            *_times(step),
            *_left_whole(step),
            *_classes(step),
            *_network(step, plots),
            *_groups(step, plots),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(step.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _lead(step: PruningStep) -> Iterator[str]:
    if step.epoch is None:
        yield (
            "<p><strong>This is a preview.</strong> A copy of the network was cut and measured; the "
            "network itself is unchanged. The numbers are those of a cut before any training step.</p>"
        )
    else:
        yield (
            f"<p>Captured in the validation of epoch {step.epoch} (counted from 0), cut at the start of "
            f"the next one.{' The fit has ended since.' if step.end else ''}</p>"
        )
    if step.verdict is not None:
        back = (
            " The network is again what it was before; the numbers are of the cut that was rolled back."
        )
        yield f"<p><strong>{escape(verdict_line(step))}.</strong>{back if step.rolled_back else ''}</p>"
    narrower = sum(old != new for old, new in step.layers.values())
    yield (
        f"<p>{narrower} of {len(step.layers)} layers become narrower. A forward pass then takes "
        f"{step.after.flops / step.before.flops:.0%} of the operations, with "
        f"{step.after.parameters / step.before.parameters:.0%} of the parameters.</p>"
    )
    if step.sums is not None:
        yield f"<p>{escape(step.sums)}</p>"


def _totals(step: PruningStep) -> str:
    """What was lost and gained, straight after the cut and, once it is known, at the end of the fit."""
    ends = [] if step.end is None else [step.end]
    complexities = [step.before, step.after, *(end.complexity for end in ends)]
    rows = [
        _row("parameters", [float(c.parameters) for c in complexities], "{:,.0f}", _times_less),
        _row("FLOPs (fvcore)", [float(c.flops) for c in complexities], "{:,.0f}", _times_less),
    ]
    accuracies = [step.accuracy_before, step.accuracy_after, *(end.accuracy for end in ends)]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) > 1:
        rows.append(_row("accuracy", known, "{:.2%}", _points))
    for found in step.latency:
        name = f"latency, batch {found.before.batch_size} ({found.before.device}), ms"
        times = milliseconds(found.before.median), milliseconds(found.after.median)
        rows.append((name, *times, f"{found.speedup:.2f}x as fast"))
    head = ["", "before", "straight after", "change"]
    if ends:
        head += ["at the end", "change"]
    return _table(head, [[*row, *[""] * (len(head) - len(row))] for row in rows])


def _row(
    name: str, values: Sequence[float], form: str, change: Callable[[float, float], str]
) -> tuple[str, ...]:
    """A row with the first value, and each further one beside its change from the first."""
    first, *others = values
    pairs = [(form.format(value), change(first, value)) for value in others]
    return (name, form.format(first), *(cell for pair in pairs for cell in pair))


def _points(old: float, new: float) -> str:
    return f"{100 * (new - old):+.2f} points"


def _times_less(old: float, new: float) -> str:
    return f"{old / new:.2f}x less"


def _notes(step: PruningStep) -> str:
    notes = [
        f"{step.samples:,} validation samples of {step.comparison.classes:,} classes were captured",
        *comparison_notes(step.comparison),
        *norms_notes(step),
        "a multiply-add counts as one FLOP",
    ]
    if step.accuracy_before is not None:
        notes.append("accuracies are those on the same validation batches, samples held back included")
    if step.after.unsupported:
        notes.append("not in the FLOPs: " + ", ".join(step.after.unsupported))
    return f'<p class="note">{escape("; ".join(notes))}.</p>'


def _contents(step: PruningStep, plots: Mapping[str, bytes]) -> str:
    places = {"layers": "Layers"}
    if step.times is not None:
        places["times"] = "Times"
    if step.left_whole:
        places["whole"] = "Left whole"
    if class_rows(step):
        places["classes"] = "Classes"
    if plots.keys() & NETWORK_PLOTS.keys():
        places["network"] = "The network"
    narrower = [name for name, chosen in step.selections.items() if chosen.k < chosen.width]
    places.update({layer_plot(name): name for name in narrower})
    links = "".join(
        f'<li><a href="#{escape(at)}">{escape(words)}</a></li>' for at, words in places.items()
    )
    return f"<nav><ul>{links}</ul></nav>"


def _layers(step: PruningStep) -> str:
    """The table of all layers; a reason that all of them share is stated once, above it."""
    rows: list[tuple[str, ...]] = []
    reasons = []
    for name, (before, after) in step.layers.items():
        chosen = step.selections.get(name)
        reasons.append("goes with another layer" if chosen is None else str(chosen.reason))
        rows.append((name, str(before), str(after), f"{after / before:.0%}"))
    head = ("layer", "channels before", "after", "kept")
    if len(rows) > 1 and len(set(reasons)) == 1:
        return (
            f"<p>The reason is the same for every layer: {escape(reasons[0])}.</p>{_table(head, rows)}"
        )
    rows = [(*row, reason) for row, reason in zip(rows, reasons, strict=True)]
    return _table((*head, "reason"), rows, "words")


def _times(step: PruningStep) -> Iterator[str]:
    if step.times is not None:
        yield '<h2 id="times">Which layers hold the network back</h2>'
        yield f"<p>{escape(summary(step.times))}.</p>"
        yield _table(HEAD, list(layer_rows(step.times)))
        yield f'<p class="note">{NOTE}</p>'


def _left_whole(step: PruningStep) -> Iterator[str]:
    if step.left_whole:
        names: dict[str, list[str]] = {}
        for name, reason in step.left_whole.items():
            names.setdefault(reason, []).append(name)
        rows = [(", ".join(layers), reason) for reason, layers in names.items()]
        yield f'<h2 id="whole">Left whole</h2><p class="note">{LEFT_WHOLE_NOTE}</p>'
        yield _table(("layer", "why it stays whole"), rows, "words")


def _classes(step: PruningStep) -> Iterator[str]:
    """The accuracy of every class; of many, of those that lose most, and of the others on demand."""
    rows = class_rows(step)
    if not rows:
        return
    lose, gain = sum(row.change < 0 for row in rows), sum(row.change > 0 for row in rows)
    when = "straight after the cut" if step.end is None else "at the end of the fit"
    head = ["class", "samples", "before", "straight after", "change in points"]
    if step.end is not None and step.end.classes is not None:
        head.insert(-1, "at the end")
    yield '<h2 id="classes">Classes</h2>'
    yield (
        f"<p>Accuracy on the validation samples of each class: {lose:,} of {len(rows):,} classes have "
        f"less of it {when}, {gain:,} have more.</p>"
    )
    if len(rows) <= MOST_CLASSES:
        yield _table(head, [row.cells() for row in rows])
        return
    worst = sorted(rows, key=lambda row: row.change)[:WORST_CLASSES]
    yield f"<h3>The {len(worst)} classes that lose most</h3>"
    yield _table(head, [row.cells() for row in worst])
    yield f"<details><summary>All {len(rows):,} classes</summary>"
    yield _table(head, [row.cells() for row in rows])
    yield "</details>"


def _network(step: PruningStep, plots: Mapping[str, bytes]) -> Iterator[str]:
    reasons = {selection.reason for selection in step.selections.values()}
    if plots.keys() & NETWORK_PLOTS.keys():
        yield '<h2 id="network">The network</h2>'
    for name, (title, words) in NETWORK_PLOTS.items():
        if name in plots:
            decided = DECIDED.get(name, {})
            words += " ".join(decided[reason] for reason in decided if reason in reasons)
            yield f"<section><h3>{title}</h3>{_figure(plots[name], title, words)}</section>"


def _groups(step: PruningStep, plots: Mapping[str, bytes]) -> Iterator[str]:
    if step.selections:
        yield f'<h2>Group by group</h2><p class="note">{GROUPS_NOTE}</p>'
    if step.maps:
        yield f'<p class="note">{_how_to_read(step)}</p>'
    whole = {name: chosen for name, chosen in step.selections.items() if chosen.k == chosen.width}
    if whole:
        number = f"{len(whole)} groups" if len(whole) > 1 else "one group"
        yield f"<p>All channels stay in {number}: {escape(', '.join(whole))}.</p>"
    for name, selection in step.selections.items():
        if name in whole:
            continue
        plot = layer_plot(name)
        yield f'<section id="{escape(plot)}"><h3>{escape(name)}</h3>'
        yield f"<p>{selection.k} of {selection.width} channels stay: {escape(selection.reason)}.</p>"
        if name in step.maps and plot in plots:
            title = f"{name}: its channels, and the classes that they separate"
            classes = step.maps[name].classes
            yield _figure(plots[plot], title, _loss(classes, step))
            if names_pairs(classes):
                head = ("pair of classes", "all channels", "kept channels", "change")
                yield _table(head, pair_cells(classes, step))
        yield f"{_kept(selection)}</section>"


def _how_to_read(step: PruningStep) -> str:
    clustered = any(clusters_decide(step.selections[name]) for name in step.maps)
    paired = any(names_pairs(view.classes) for view in step.maps.values())
    mapped = any(shows_map(view) for view in step.maps.values())
    words = MAP.format(rings=CLUSTERS if clustered else RINGS, most=MOST_STRESS) if mapped else ""
    return HOW_TO_READ.format(map=words, classes=PAIRS if paired else MATRICES)


def _loss(classes: ClassSeparation, step: PruningStep) -> str:
    """The pair of classes that loses most, in words."""
    if classes.worst:
        pair = classes.worst[0]
        return (
            f"Of {classes.class_pairs:,} pairs of classes compared, {step.class_name(pair.first)} and "
            f"{step.class_name(pair.second)} lose most: their distance falls from {pair.before:.2f} to "
            f"{pair.after:.2f}."
        )
    lost = (classes.before - classes.after).nan_to_num()
    first, second = divmod(int(lost.argmax()), len(lost))
    if not lost[first, second] > 0:
        return "For every pair of classes the channel that separates it best stays."
    ranges = [str(low) if low == high else f"{low}-{high}" for low, high in classes.ranges]
    return (
        f"The largest loss is between classes {ranges[first]} and {ranges[second]}: their distance falls"
        f" from {float(classes.before[first, second]):.2f} to {float(classes.after[first, second]):.2f}."
    )


def _kept(selection: ChannelSelection) -> str:
    indices = ", ".join(map(str, selection.kept.tolist()))
    return f"<details><summary>Kept channels</summary><p><code>{indices}</code></p></details>"


def _figure(plot: bytes, title: str, words: str) -> str:
    data = base64.b64encode(plot).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    columns = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f'<table class="{kind}"><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="wide">{table}</div>'
