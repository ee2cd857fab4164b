"""Separation at scale: time against the work that no way around, memory, and growth over sizes.

    python tests/benchmarks/separation.py --out OUT

"unavoidable" is one exponential for each channel, position and class pair, and half of the full product
of the (N, L P) matrix with its transpose, both in float32, timed in the same run on a part of the work.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import in_a_fresh_process, in_turn, peak_bytes, record

from acsp_lightning.functional import ClassMoments, compare_channels, separation_distances

LARGE = [(1000, 512, 4), (1000, 2048, 1)]
GROWTH = {
    "C": [(classes, 128, 1) for classes in (125, 250, 500, 1000)],
    "N": [(200, channels, 1) for channels in (128, 256, 512, 1024, 2048)],
    "P": [(200, 128, positions) for positions in (1, 4, 16, 64)],
}
SAMPLED_SHARE = 0.1
PART = 0.05  # of the unavoidable work is timed
VALUES = 2**17  # in one exponential
ROWS = 512  # in one product


def made_up(classes: int, channels: int, positions: int) -> ClassMoments:
    """Moments of channels that respond to sixteen directions in common."""
    generator = torch.Generator().manual_seed(0)
    shape = {"generator": generator, "dtype": torch.float64}
    directions = torch.randn(classes, 16, positions, **shape)
    mean = torch.einsum("cdp,dn->cnp", directions, torch.randn(16, channels, **shape)) / 3
    variance = 0.5 + torch.rand(classes, channels, positions, **shape)
    return ClassMoments(torch.full((classes,), 50), mean, variance * 50)


def unavoidable(classes: int, channels: int, positions: int) -> Callable[[], None]:
    """A part of the exponentials and of the full products."""
    rows = classes * (classes - 1) // 2 * positions
    exponentials = max(1, round(PART * rows * channels / VALUES))
    products = max(1, round(PART * rows / ROWS / 2))
    values, found = torch.rand(2, VALUES)
    matrix = torch.rand(min(rows, ROWS), channels)
    total = torch.zeros(channels, channels)

    def work() -> None:
        for _ in range(exponentials):
            torch.exp(values, out=found)
        for _ in range(products):
            total.addmm_(matrix.T, matrix)

    return work


def case(classes: int, channels: int, positions: int, repeats: int) -> dict[str, float]:
    """One size, in this process."""
    moments = made_up(classes, channels, positions)
    before = peak_bytes()
    seconds = in_turn(
        {
            "ours": lambda: separation_distances(moments),
            "unavoidable": unavoidable(classes, channels, positions),
        },
        repeats,
    )
    least = seconds["unavoidable"] / PART
    return {
        "C": classes,
        "N": channels,
        "P": positions,
        "seconds": seconds["ours"],
        "times unavoidable": seconds["ours"] / least,
        "extra MB": (peak_bytes() - before) / 2**20,
    }


def sampled() -> dict[str, float]:
    """A tenth of 1000 classes' pairs against all of them."""
    moments = made_up(1000, 256, 4)
    exact = compare_channels(moments)
    few = compare_channels(moments, round(SAMPLED_SHARE * exact.class_pairs))
    apart = exact.distances > 0
    wrong = (few.distances - exact.distances)[apart] / exact.distances[apart].median()
    return {
        "class pairs": few.class_pairs,
        "claimed error": few.sampling_error,
        "true error, rms": float(wrong.square().mean().sqrt()),
        "largest": float(wrong.abs().max()),
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Time and memory over each size, with the growth that is expected."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(GROWTH), figsize=(12, 6.5), squeeze=False)
    powers = {"C": 2, "N": 2, "P": 1}
    for column, (size, cases) in enumerate(GROWTH.items()):
        found = [row for row in rows if (row["C"], row["N"], row["P"]) in cases]
        sizes = [row[size] for row in found]
        time_axis, memory_axis = axes[:, column]
        time_axis.loglog(sizes, [row["seconds"] for row in found], marker="o", label="measured")
        last = found[-1]
        expected = [last["seconds"] * (s / last[size]) ** powers[size] for s in sizes]
        label = f"proportional to {size}" + ("²" if powers[size] == 2 else "")
        time_axis.loglog(sizes, expected, linestyle="--", color="grey", label=label)
        time_axis.set_xticks(sizes, map(str, sizes))
        time_axis.minorticks_off()
        time_axis.set_ylabel("seconds")
        time_axis.legend(fontsize="small")
        memory_axis.plot(sizes, [row["extra MB"] for row in found], marker="o")
        memory_axis.set_ylabel("memory beyond the moments, MB")
        memory_axis.set_ylim(bottom=0)
        others = [f"{name} = {found[0][name]}" for name in GROWTH if name != size]
        for axis in (time_axis, memory_axis):
            axis.set_xlabel(f"{size}   ({', '.join(others)})")
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", type=int, nargs=3, metavar=("C", "N", "P"), help="one size, as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(*options.case, options.repeats)))
        return
    sizes = LARGE + sorted({size for cases in GROWTH.values() for size in cases})
    repeats = ["--repeats", options.repeats]
    rows = [in_a_fresh_process(__file__, "--case", *size, *repeats) for size in sizes]
    record(options.out, "separation", rows)
    record(options.out, "sampled_pairs", [sampled()])
    draw(rows, options.out / "separation.png")


if __name__ == "__main__":
    sys.exit(main())
