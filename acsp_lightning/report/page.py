"""The report page of a cut: one self-contained HTML file that includes the plots."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from acsp_lightning.functional import ChannelSelection, ClassSeparation
from acsp_lightning.report.figures import layer_plot
from acsp_lightning.report.step import PruningStep
from acsp_lightning.report.tables import comparison_notes, milliseconds, verdict_line

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
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption, .note { font-size: .9rem; opacity: .85; }
code { font: .85rem ui-monospace, monospace; overflow-wrap: anywhere; }
nav ul { columns: 18rem; font-size: .9rem; overflow-wrap: anywhere; }
a { color: var(--link); } summary { cursor: pointer; }
@media print { body { max-width: none; margin: 0; } section, figure, tr { break-inside: avoid; } }
"""

# Title and caption by the name of a plot.
NETWORK_PLOTS = {
    "network": (
        "Damage over FLOPs",
        "Read it from right to left: channels are removed in the order of least damage per FLOP saved. "
        "Damage is the part of the next layers' outputs that the kept channels cannot explain. The dot "
        "is the knee, beyond which a cut costs more than it saves; the dashed line is this cut.",
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
        "Curves of every group",
        "For every number k of kept channels: coverage is how well they represent all channels, "
        "weighted by contribution; the silhouette is how well the k clusters are separated. If a group "
        "is decided on its own, its width is the knee of the darker line. The dashed line is the number "
        "kept; the title has the reason.",
    ),
}
GROUPS_NOTE = (
    "A group is a set of layers that must lose the same channels, named after the first one. Groups "
    "that keep all channels have no plot."
)
# Shown once: a large network has dozens of these plots.
HOW_TO_READ = (
    "On the left of each plot every dot is a channel; close channels separate the same classes. "
    "Channels of one colour, joined by lines, are a cluster; the one that is kept for all of them has a "
    "ring. Grey channels are clusters of one. The map shows many dimensions in two: the stress is the "
    "error of its distances, 0 if they are exact. On the right each cell is a pair of classes, with "
    "their distance by the channel that separates them best (Jeffries-Matusita distance: 0 not at all, "
    "2 completely): for all channels, for those kept, and the loss between the two. Channels together "
    "separate more than the best of them, and fine-tuning can recover a loss. If there are many "
    "classes, neighbours share a cell, which shows the pair that is separated least; if there are very "
    "many pairs, a random sample is compared."
)


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
            _contents(step),
            '<h2 id="layers">Layers</h2>',
            _layers(step),
            '<h2 id="network">The network</h2>',
            *_network(plots),
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
            "the next one. The numbers are those straight after the cut, before any training step.</p>"
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


def _totals(step: PruningStep) -> str:
    before, after = step.before, step.after
    cells = [
        (name, f"{old:,}", f"{new:,}", f"{old / new:.2f}x less")
        for name, old, new in (
            ("parameters", before.parameters, after.parameters),
            ("FLOPs (fvcore)", before.flops, after.flops),
        )
    ]
    if step.accuracy_before is not None and step.accuracy_after is not None:
        change = f"{100 * (step.accuracy_after - step.accuracy_before):+.2f} points"
        cells.append(("accuracy", f"{step.accuracy_before:.2%}", f"{step.accuracy_after:.2%}", change))
    for found in step.latency:
        name = f"latency, batch {found.before.batch_size} ({found.before.device}), ms"
        times = milliseconds(found.before.median), milliseconds(found.after.median)
        cells.append((name, *times, f"{found.speedup:.2f}x as fast"))
    return _table(("", "before", "straight after", "change"), cells)


def _notes(step: PruningStep) -> str:
    notes = [
        f"{step.samples:,} validation samples of {step.comparison.classes:,} classes were captured",
        *comparison_notes(step.comparison),
        "a multiply-add counts as one FLOP",
    ]
    if step.accuracy_before is not None:
        notes.append("the accuracy is that on the captured samples")
    if step.after.unsupported:
        notes.append("not in the FLOPs: " + ", ".join(step.after.unsupported))
    return f'<p class="note">{escape("; ".join(notes))}.</p>'


def _contents(step: PruningStep) -> str:
    places = {"layers": "Layers", "network": "The network"}
    places.update({layer_plot(name): name for name in step.selections})
    links = "".join(
        f'<li><a href="#{escape(at)}">{escape(words)}</a></li>' for at, words in places.items()
    )
    return f"<nav><ul>{links}</ul></nav>"


def _layers(step: PruningStep) -> str:
    rows = []
    for name, (before, after) in step.layers.items():
        chosen = step.selections.get(name)
        reason = "goes with another layer" if chosen is None else str(chosen.reason)
        rows.append((name, str(before), str(after), f"{after / before:.0%}", reason))
    return _table(("layer", "channels before", "after", "kept", "reason"), rows, "words")


def _network(plots: Mapping[str, bytes]) -> Iterator[str]:
    for name, (title, words) in NETWORK_PLOTS.items():
        if name in plots:
            yield f"<section><h3>{title}</h3>{_figure(plots[name], title, words)}</section>"


def _groups(step: PruningStep, plots: Mapping[str, bytes]) -> Iterator[str]:
    if step.selections:
        yield f'<h2>Group by group</h2><p class="note">{GROUPS_NOTE}</p>'
    if step.maps:
        yield f'<p class="note">{HOW_TO_READ}</p>'
    for name, selection in step.selections.items():
        plot = layer_plot(name)
        yield f'<section id="{escape(plot)}"><h3>{escape(name)}</h3>'
        yield f"<p>{selection.k} of {selection.width} channels stay: {escape(selection.reason)}.</p>"
        if name in step.maps and plot in plots:
            title = f"{name}: its channels, and the classes that they separate"
            yield _figure(plots[plot], title, _loss(step.maps[name].classes))
        if selection.k < selection.width:
            yield _kept(selection)
        yield "</section>"


def _loss(classes: ClassSeparation) -> str:
    """The pair of classes that loses most, in words."""
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
    return f'<table class="{kind}"><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>'
