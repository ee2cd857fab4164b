"""The page of a cut: one file that opens anywhere, with its pictures inside."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from acsp_lightning.functional import ChannelSelection
from acsp_lightning.report.figures import layer_picture
from acsp_lightning.report.step import PruningStep
from acsp_lightning.report.tables import comparison_notes, milliseconds, verdict_line

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #1f6fb2; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 2rem; font: 600 1rem ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
thead th { background: var(--soft); }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption, .note { font-size: .9rem; opacity: .85; }
code { font: .85rem ui-monospace, monospace; overflow-wrap: anywhere; }
nav ul { columns: 2; font: .85rem ui-monospace, monospace; overflow-wrap: anywhere; }
a { color: var(--accent); }
@media print { body { max-width: none; margin: 0; } section { break-inside: avoid; } }
"""

CAPTIONS = {
    "network": "Going left, channels are taken where that does least damage for the FLOPs it saves; the "
    "damage is the share of what the next layers say that the remaining channels cannot explain. The "
    "dot is the knee, where going on begins to cost more than it saves; the dashed line is this cut.",
    "channels": "Output channels of every layer, before (wide bars) and after (narrow bars).",
    "flops": "FLOPs of every layer for one forward pass. Layers that lose no channel of their own still "
    "become cheaper where they read fewer.",
    "curves": "Coverage says how well k channels stand for all of them, weighted by how much each "
    "contributes; the silhouette how well k clusters are apart. The stronger line is the one that "
    "decides where a layer decides by itself. The dashed line is what was kept.",
}
HOW_TO_READ = (
    "In a picture, left: every dot is a channel. Channels that separate the same classes lie together; "
    "one colour is one cluster, a thin line leads to its middle, larger dots contribute more, ringed "
    "ones were kept. The map shows two dimensions of many: the stress says how far its distances are "
    "off (0: not at all). Right: how well the best channel separates each pair of classes, 0 not at "
    "all, 2 completely, before and after. A cell that turns dark is a pair that no kept channel tells "
    "apart by itself any more. Of many classes neighbours share a cell, which shows the pair that is "
    "separated least."
)


def step_page(step: PruningStep, pictures: Mapping[str, bytes]) -> str:
    """The page of a cut as HTML, without anything from elsewhere.

    Args:
        step: the cut.
        pictures: PNGs of :func:`acsp_lightning.report.figures.step_figures`, by name; those that are
            missing are left out.
    """
    body = "\n".join(
        [
            f"<h1>{escape(step.title)}</h1>",
            *_lead(step),
            _totals(step),
            *_notes(step),
            *_contents(step),
            "<h2>Layers</h2>",
            _layers(step),
            "<h2>The network</h2>",
            *(_figure(name, pictures, CAPTIONS[name]) for name in CAPTIONS),
            *_groups(step, pictures),
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
            "network itself is as it was. The figures are what a cut would give before any training.</p>"
        )
    else:
        yield (
            f"<p>Captured in the validation of epoch {step.epoch} (counted from 0), cut at the start of "
            "the next one. The figures are those straight after the cut, before any training step.</p>"
        )
    if step.verdict is not None:
        yield f"<p><strong>{escape(verdict_line(step))}</strong></p>"


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
    return _table(("", "before", "straight after", ""), cells)


def _notes(step: PruningStep) -> Iterator[str]:
    seen = f"{step.samples:,} validation samples of {step.comparison.classes:,} classes were captured"
    notes = [seen, *comparison_notes(step.comparison)]
    if step.after.unsupported:
        notes.append("not in the FLOPs: " + ", ".join(step.after.unsupported))
    yield f'<p class="note">{escape("; ".join(notes))}.</p>'


def _contents(step: PruningStep) -> Iterator[str]:
    if step.views:
        links = (
            f'<li><a href="#{escape(layer_picture(name))}">{escape(name)}</a></li>'
            for name in step.views
        )
        yield f"<nav><h2>Groups of channels</h2><ul>{''.join(links)}</ul></nav>"


def _layers(step: PruningStep) -> str:
    cells = []
    for name, (before, after) in step.layers.items():
        cells.append((name, str(before), str(after), f"{after / before:.0%}"))
    return _table(("layer", "channels before", "after", "kept"), cells)


def _groups(step: PruningStep, pictures: Mapping[str, bytes]) -> Iterator[str]:
    if step.selections:
        yield "<h2>Group by group</h2>"
        yield (
            '<p class="note">A group is a set of layers that have to lose the same channels; it has the '
            f"name of the first. Groups that stay whole have no picture. {escape(HOW_TO_READ)}</p>"
        )
    for name, selection in step.selections.items():
        picture = layer_picture(name)
        yield f'<section id="{escape(picture)}"><h3>{escape(name)}</h3>'
        yield (
            f"<p>{selection.k} of {selection.width} channels stay: {escape(str(selection.reason))}.</p>"
        )
        if name in step.views:
            yield _figure(picture, pictures, "")
            yield _kept(selection)
        yield "</section>"


def _kept(selection: ChannelSelection) -> str:
    indices = ", ".join(map(str, selection.kept.tolist()))
    return f"<details><summary>Channels that stay</summary><p><code>{indices}</code></p></details>"


def _figure(name: str, pictures: Mapping[str, bytes], caption: str) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name]).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">{words}</figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>"
