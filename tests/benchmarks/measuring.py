"""What all benchmarks share: repeats in turn, the machine, records and images."""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each work, after one run to warm up; all in turn, so that noise hits all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_a_fresh_process(script: str, *arguments: object) -> dict[str, Any]:
    """The JSON that a script prints last; its peak of memory is its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """Where figures come from."""
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "acsp_lightning": version("acsp-lightning"),
    }


def record(out: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table and write them, with the machine, to OUT/name.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{name}: {machine()}")
    print("  ".join(f"{column:>14}" for column in columns))
    for row in rows:
        print("  ".join(f"{_text(row.get(column)):>14}" for column in columns), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "rows": list(rows)}
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def draw_bars(
    path: Path,
    labels: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    axis: str,
    *,
    stacked: bool = False,
    line: tuple[float, str] | None = None,
) -> None:
    """A plot of horizontal bars, some for each label, with a line at a value to be met."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(labels)), layout="constrained")
    height = 0.8 if stacked else 0.8 / len(bars)
    ends = [0.0] * len(labels)
    for place, (name, values) in enumerate(bars.items()):
        shift = 0.0 if stacked else (place - (len(bars) - 1) / 2) * height
        rows = [row + shift for row in range(len(labels))]
        axes.barh(rows, values, height, left=ends if stacked else None, label=name)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    if line is not None:
        axes.axvline(line[0], color="black", linestyle=":", label=line[1])
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
