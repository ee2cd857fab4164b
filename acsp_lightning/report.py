"""What a cut did: its record, and the tables and files that people read."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from acsp_lightning.complexity import Complexity
from acsp_lightning.evidence import Comparison
from acsp_lightning.functional import ChannelSelection, WidthReason
from acsp_lightning.guard import Outcome, Verdict
from acsp_lightning.latency import LatencyComparison
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.volume import NetworkCurve

TABLE_WIDTH = 80  # of the narrowest usual terminal


@dataclass(frozen=True, slots=True)
class PruningStep:
    """One cut, with its evidence.

    Attributes:
        epoch: zero-based epoch whose validation was captured; the cut came at the start of the next.
        plan: the kept indices of every layer side that changed.
        selections: the selection for every group that was looked at, by group name.
        layers: for every layer whose filters make channels of these groups, the number of output
            channels before and after.
        before: complexity of the network before the cut, of one forward pass on the example inputs.
        after: the same after it.
        accuracy_before: top-1 accuracy on the captured validation batches before the cut, in [0, 1];
            None if forward does not give logits.
        accuracy_after: the same straight after the cut, before any training step.
        samples: validation samples that were captured.
        comparison: what the distances between channels rest on.
        network: damage to the whole network against its FLOPs, where it decided; else None.
        verdict: what the accuracy guard found; None without a guard, and while it waits.
        latency: the network before the cut and straight after it, timed in turns in one run, for each
            batch size that was asked for.
    """

    epoch: int
    plan: PruningPlan
    selections: Mapping[str, ChannelSelection]
    layers: Mapping[str, tuple[int, int]]
    before: Complexity
    after: Complexity
    accuracy_before: float | None
    accuracy_after: float | None
    samples: int
    comparison: Comparison
    network: NetworkCurve | None = None
    verdict: Verdict | None = None
    latency: Sequence[LatencyComparison] = ()

    @property
    def again(self) -> bool:
        """Whether this is the second cut of the same layers, at half the depth of the first."""
        return any(s.reason is WidthReason.HALVED for s in self.selections.values())

    @property
    def undone(self) -> bool:
        """Whether the network was put back as it had been before this cut."""
        return self.verdict is not None and self.verdict.outcome in (Outcome.HALVED, Outcome.LEFT)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: tensors become lists."""
        return {
            "epoch": self.epoch,
            "plan": self.plan.to_dict(),
            "selections": {name: _plain(s) for name, s in self.selections.items()},
            "layers": {name: list(widths) for name, widths in self.layers.items()},
            "before": asdict(self.before),
            "after": asdict(self.after),
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "samples": self.samples,
            "comparison": asdict(self.comparison),
            "network": self.network and asdict(self.network),
            "verdict": self.verdict and asdict(self.verdict),
            "latency": [asdict(comparison) for comparison in self.latency],
        }


def write_step(step: PruningStep, folder: Path) -> Path:
    """Write ``step`` as JSON into ``folder``, which is made if need be; returns the file.

    The file appears whole or not at all: a process that dies leaves at most a ``.tmp`` beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cut_after_epoch_{step.epoch}{'_again' if step.again else ''}.json"
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(json.dumps(step.to_dict(), indent=1))
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return path


def step_table(step: PruningStep) -> str:
    """One cut as text: channels per layer, then the network before and straight after it."""
    title = f"Cut after epoch {step.epoch}{', again, at half the depth' if step.again else ''}"
    table = _table(title, ("", "before", "straight after"))
    _add_layers(table, step.layers)
    _add_counts(table, (step.before, step.after))
    _add_latency(table, step.latency)
    _add_accuracies(table, (step.accuracy_before, step.accuracy_after))
    return _text(table, step.after, _compared(step.comparison))


def summary_table(steps: Sequence[PruningStep], final: Complexity, final_accuracy: float | None) -> str:
    """All cuts of a run as text: before the first, straight after the last, and at the end.

    Latencies are those of a single cut; of several, first and last were not measured in one run.

    Args:
        steps: the cuts that were not undone, at least one.
        final: complexity of the network at the end.
        final_accuracy: its top-1 accuracy, as in :class:`PruningStep`.
    """
    first, last = steps[0], steps[-1]
    layers: dict[str, tuple[int, int]] = {}
    for step in steps:
        for name, (before, after) in step.layers.items():
            layers[name] = (layers.get(name, (before, 0))[0], after)
    single = len(steps) == 1
    title = "Pruned in one cut" if single else f"Pruned in {len(steps)} cuts"
    columns = ("", "before", "straight after" if single else "after the last", "at the end")
    table = _table(title, columns)
    _add_layers(table, layers)
    _add_counts(table, (first.before, last.after, final))
    if single:
        _add_latency(table, first.latency)
    _add_accuracies(table, (first.accuracy_before, last.accuracy_after, final_accuracy))
    return _text(table, final)


def verdict_line(step: PruningStep) -> str:
    """What the accuracy guard did with a cut, as one line of text; for a cut that has a verdict."""
    verdict = step.verdict
    assert verdict is not None, "a cut without a verdict"
    name = f"cut after epoch {step.epoch}{', again,' if step.again else ''}"
    after = "?" if verdict.after is None else f"{verdict.after:.4g}"
    return f"Guard: {name} {verdict.outcome} ({verdict.monitor} {verdict.before:.4g} -> {after})"


def _plain(selection: ChannelSelection) -> dict[str, Any]:
    values = {name: getattr(selection, name) for name in ChannelSelection.__slots__}
    return {n: v.tolist() if isinstance(v, Tensor) else v for n, v in values.items()}


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
        before, after = _milliseconds(found.before.median), _milliseconds(found.after.median)
        table.add_row(name, before, f"{after} ({ratio})", *["-"] * (len(table.columns) - 3))


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.{2 if seconds >= 0.001 else 3}f}"


def _add_accuracies(table: Table, accuracies: Sequence[float | None]) -> None:
    table.add_row("accuracy", *("-" if a is None else f"{a:.2%}" for a in accuracies))


def _compared(comparison: Comparison) -> list[str]:
    """What readers should know of the classes; nothing if all were seen and compared."""
    lines = []
    if comparison.unseen:
        lines.append(f"{comparison.unseen} classes never appeared and were left out")
    if comparison.sampling_error:
        lines.append(
            f"{comparison.class_pairs:,} class pairs were drawn at random: distances are right to "
            f"{comparison.sampling_error:.1%} of their median"
        )
    return lines


def _text(table: Table, counted: Complexity, notes: Sequence[str] = ()) -> str:
    lines = list(notes)
    if counted.unsupported:
        lines.append("not in the FLOPs: " + ", ".join(counted.unsupported))
    table.caption = "\n".join(lines) or None
    table.caption_justify = "left"
    sink = io.StringIO()
    Console(file=sink, width=TABLE_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().rstrip().splitlines())
