"""The k-medoids sweep against compiled FasterPAM from random starts, over the same k, in one run.

    python tests/benchmarks/sweep.py --out OUT

Every repeat times the two in turn, so that both meet the same load; ratios are taken within a
repeat, and their median is reported. Where FasterPAM over every k takes too long (``--most``), it is
timed at evenly spaced k, and its time is scaled by their number; the table says at how many.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kmedoids
import numpy as np
import torch
from measuring import record
from torch import Tensor

from acsp_lightning.functional import ClassMoments, separation_distances, sweep_k_medoids
from acsp_lightning.functional._medoid_search import MedoidSearch
from acsp_lightning.selection.damage import candidate_widths

CLASSES, POSITIONS = 10, 4


def layer(num_channels: int, seed: int) -> Tensor:
    """Distances between channels as in a layer: features, of which several channels are variants."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_features = max(4, num_channels // 8)
    feature = normal(CLASSES, num_features, POSITIONS)
    feature *= 2 * torch.rand(1, num_features, 1, generator=generator, dtype=torch.float64)
    owner = torch.randint(num_features, (num_channels,), generator=generator)
    mean = feature[:, owner] + 0.4 * normal(CLASSES, num_channels, POSITIONS)
    count = torch.full((CLASSES,), 500)
    m2 = 500 * (0.5 + torch.rand(mean.shape, generator=generator, dtype=torch.float64))
    return separation_distances(ClassMoments(count, mean, m2))


def vectors(num_channels: int, seed: int) -> Tensor:
    """Euclidean distances of vectors around an eighth as many centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(max(4, num_channels // 8), 20, generator=generator, dtype=torch.float64)
    owner = torch.randint(len(centres), (num_channels,), generator=generator)
    points = centres[owner]
    points = points + 0.3 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


DATA = {"layer": layer, "vectors": vectors}
LISTS: dict[str, Callable[[int], Sequence[int]]] = {
    "every k": lambda size: range(2, size),
    "candidates": lambda size: candidate_widths(size, 2, 1),
}


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of this process on all cores, and the result."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - clock, time.process_time() - cpu, result


def spaced(ks: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of some numbers, evenly spaced, both ends among them."""
    if len(ks) <= most:
        return list(ks)
    return [ks[place * (len(ks) - 1) // (most - 1)] for place in range(most)]


def compare(
    distances: Tensor, ks: Sequence[int], repeats: int, most: int
) -> tuple[dict[str, Any], dict[int, float]]:
    """Times of both over ``ks``, and our deviation over FasterPAM's at the k that it was run at."""
    matrix = distances.numpy()
    asked = spaced(ks, most)
    scale = len(ks) / len(asked)
    ours, theirs, clock, cpu = [], [], [], []
    worst = 0.0
    for repeat in range(repeats):
        own_clock, own_cpu, sweep = timed(lambda: sweep_k_medoids(distances, ks=ks))
        their_clock, their_cpu, losses = _fasterpam(matrix, asked, repeat)
        rows = torch.isin(sweep.ks, torch.tensor(asked))
        deviations = sweep.deviation[rows].numpy() / np.array(losses)
        worst = max(worst, float(deviations.max()))
        ours.append(own_clock)
        theirs.append(their_clock * scale)
        clock.append(own_clock / theirs[-1])
        cpu.append(own_cpu / (their_cpu * scale))
    row = {
        "k": len(ks),
        "k timed": len(asked),
        "ours s": statistics.median(ours),
        "FasterPAM s": statistics.median(theirs),
        "ratio": statistics.median(clock),
        "CPU ratio": statistics.median(cpu),
        "worst deviation": worst,
    }
    return row, dict(zip(asked, deviations.tolist(), strict=True))


def _fasterpam(matrix: Any, ks: Sequence[int], seed: int) -> tuple[float, float, list[float]]:
    """Times and losses; with two threads or one, whichever is faster: small ones do not repay two."""
    runs = [
        timed(
            lambda threads=threads: [
                kmedoids.fasterpam(matrix, k, init="random", random_state=seed, n_cpu=threads).loss
                for k in ks
            ]
        )
        for threads in ((1,) if len(matrix) < 1000 else (1, 2))
    ]
    return min(runs, key=lambda run: run[0])


def weighted(distances: Tensor, seed: int) -> float:
    """Worst deviation under uneven weights, against FasterPAM on a matrix in which they are copies.

    A weight of 3 means the same as three channels in one place.
    """
    weights = np.random.default_rng(seed).integers(1, 5, len(distances))
    source = np.repeat(np.arange(len(distances)), weights)
    matrix = distances.numpy()
    copies = np.ascontiguousarray(matrix[source][:, source])
    ks = spaced(range(2, len(distances)), 24)
    found = MedoidSearch(matrix, weights.astype(np.float64)).run(ks)
    return max(
        float(weights @ matrix[:, found[k]].min(axis=1))
        / kmedoids.fasterpam(copies, k, init="random", random_state=seed, n_cpu=1).loss
        for k in ks
    )


def draw(
    rows: Sequence[dict[str, Any]], curves: dict[tuple[str, int], dict[int, float]], path: Path
) -> None:
    """Ratio of the deviations over k, and of the times over N."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (data, size), curve in curves.items():
        share = np.array(list(curve)) / size
        left.plot(share, list(curve.values()), lw=0.8, label=f"{data} {size}")
    left.axhline(1.01, color="black", ls=":")
    left.set(xlabel="k / N", ylabel="deviation / deviation of FasterPAM")
    left.legend(fontsize=7)
    for data in DATA:
        for kind in LISTS:
            chosen = [row for row in rows if row["data"] == data and row["list"] == kind]
            sizes, ratios = [row["N"] for row in chosen], [row["ratio"] for row in chosen]
            right.plot(sizes, ratios, "o-", label=f"{data}, {kind}")
    right.axhline(1.0, color="black", ls=":")
    right.set(xlabel="channels", ylabel="time / time of FasterPAM", xscale="log", yscale="log")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=24, help="k at most that FasterPAM is timed at")
    options = parser.parse_args()
    rows, curves = [], {}
    for size in options.sizes:
        for data, make in DATA.items():
            distances = make(size, 0)
            on_copies = weighted(distances, 0) if size <= 1024 else None
            for kind, ks_of in LISTS.items():
                found, curve = compare(distances, ks_of(size), options.repeats, options.most)
                rows.append(
                    {"data": data, "N": size, "list": kind, **found, "worst weighted": on_copies}
                )
                if kind == "every k":
                    curves[data, size] = curve
    record(options.out, "sweep", rows)
    draw(rows, curves, options.out / "sweep.png")


if __name__ == "__main__":
    main()
