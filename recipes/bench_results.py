"""Results of the bench: the file of its rows, their means, and the plots."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What identifies a row, and its results.
SETTING = ["table", "network", "tuning", "precision", "captured", "target", "method"]
COLUMNS = [
    *SETTING,
    "seed",
    "flops",
    "parameters",
    "base",
    "cut",
    "tuned",
    "seconds",
    "epochs",
    "machine",
    "error",
]
# Not told where a row has it.
LEARNING_RATE = 0.01
Row = dict[str, str]
Cells = Mapping[tuple[str, ...], Sequence[Row]]
Point = tuple[float, float, float]
Panels = Mapping[str, Mapping[str, Sequence[Point]]]


def known(path: Path) -> list[Row]:
    """The rows written so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def report(folder: Path) -> None:
    """Print means and standard deviations over the seeds, and draw the plots."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for row in known(folder / "runs.csv"):
        cells.setdefault(tuple(row[column] for column in SETTING), []).append(row)
    titles = [*SETTING, "FLOPs", "parameters", "straight after", "tuned", "seconds", "epochs", "seeds"]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for setting, rows in sorted(cells.items()):
        fewer = [f"{mean_of(rows, column):.2f}x" for column in ("flops", "parameters")]
        columns = [spread(rows, column) for column in ("cut", "tuned", "seconds")]
        print("| " + " | ".join([*setting, *fewer, *columns, rows[0]["epochs"], str(len(rows))]) + " |")
    draw(by_flops(cells), "FLOPs, times fewer", folder / "bench.png")
    lengths = by_epochs(cells)
    if lengths:
        draw(lengths, "epochs of tuning", folder / "tuning.png", logarithmic=True)


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Mean of a column."""
    return statistics.mean(float(row[column]) for row in rows)


def deviation_of(rows: Sequence[Row], column: str) -> float:
    """Standard deviation of a column; 0 for a single row."""
    return statistics.stdev(float(row[column]) for row in rows) if len(rows) > 1 else 0.0


def spread(rows: Sequence[Row], column: str) -> str:
    """Mean and standard deviation of a column as text, if it was measured."""
    measured_rows = [row for row in rows if row[column]]
    if not measured_rows:
        return "-"
    deviation = f" ± {deviation_of(measured_rows, column):.2f}" if len(measured_rows) > 1 else ""
    return f"{mean_of(measured_rows, column):.2f}{deviation}"


def by_flops(cells: Cells) -> Panels:
    """Accuracy against FLOPs, for every table and tuning."""
    found = []
    for (table, network, tuning, precision, captured, _, method), rows in cells.items():
        title = f"{table}, tuning: {tuning}\n{network}, {precision}, {captured} captured"
        column = "cut" if tuning == "none" else "tuned"
        found.append((title, method, point(rows, "flops", column)))
    return by_title(found)


def by_epochs(cells: Cells) -> Panels:
    """Accuracy against the length of tuning, for every depth and way to tune; empty without any."""
    found = []
    for (table, network, tuning, precision, captured, target, method), rows in cells.items():
        if table == "tuning":
            _, _, *start = tuning.split(maxsplit=2)
            title = f"{network} at {1 / float(target):.1f}x, {precision}, {captured} captured\n"
            title += " ".join(start) or f"lr {LEARNING_RATE:g}"
            found.append((title, method, point(rows, "epochs", "tuned")))
    return by_title(found)


def point(rows: Sequence[Row], x: str, y: str) -> Point:
    """Means of two columns, and the deviation of the second."""
    return mean_of(rows, x), mean_of(rows, y), deviation_of(rows, y)


def by_title(points: Iterable[tuple[str, str, Point]]) -> Panels:
    """Points with the title of their panel and their method, put in order."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for title, method, found in sorted(points):
        panels.setdefault(title, {}).setdefault(method, []).append(found)
    return panels


def draw(panels: Panels, label: str, path: Path, logarithmic: bool = False) -> None:
    """Accuracy and its deviation: a panel for each title, a line for each method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter

    colors = pyplot.get_cmap("tab20")
    found = {method for lines in panels.values() for method in lines}
    methods = sorted(found, key=lambda name: (name != "default", name))
    width = min(len(panels), 3)
    height = -(-len(panels) // width)
    figure, axes = pyplot.subplots(
        height, width, figsize=(5.5 * width, 4.5 * height), squeeze=False, sharex=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for place, method in enumerate(methods):
            if method in lines:
                x, y, deviation = zip(*lines[method], strict=True)
                axis.errorbar(x, y, deviation, marker="o", capsize=3, color=colors(place), label=method)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        if logarithmic:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_tick_params(labelbottom=True)
        axis.set_ylabel("test accuracy, %")
        axis.legend(fontsize="x-small")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
