"""A whole cut of ResNet-50 with 1000 classes: what each part takes, and the memory of the process.

    python tests/benchmarks/cutting.py --out OUT

The moments are made up; groups, distances, sweeps, curves and the cut are those of a training. With
``--recover`` images of 224 x 224 are made up as well, and layers refitted on them, 32 at a time;
that is to take at most 1 GiB beyond a validation with batches of 32. With ``--residual`` the streams
are cut as well; that is to take at most half as long again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import draw_bars, in_a_fresh_process, peak_bytes, record
from torchvision.models import resnet50

from acsp_lightning import SelectionConfig, measure_complexity
from acsp_lightning.capture.samples import SampleCollector
from acsp_lightning.capture.statistics import Activations, InputMoments
from acsp_lightning.functional import ClassSums
from acsp_lightning.selection import allocation, weighing
from acsp_lightning.selection.damage import output_sizes
from acsp_lightning.selection.maps import map_groups
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.verification import prunable_groups

CLASSES = 1000
SAMPLES = 50  # of every class
BATCH = 32
CASES = [
    ["--grid", 1],
    ["--grid", 1, "--residual"],
    ["--grid", 1, "--recover", 512],
    ["--grid", 4, "--class-pairs", 49_950],
]


def made_up(groups: Sequence[ChannelGroup], grid: int) -> Activations:
    """Moments of channels that respond to sixteen directions in common."""
    outputs, inputs = {}, {}
    positions = grid * grid
    for group in groups:
        for side in group.producers:
            directions = torch.randn(CLASSES, 16, positions)
            mean = torch.einsum("cdp,dn->cnp", directions, torch.randn(16, side.width)) / 3
            variance = 0.5 + torch.rand(CLASSES, side.width, positions)
            count = torch.full((CLASSES,), SAMPLES)
            squares = (variance + mean.square()) * SAMPLES
            origin = torch.zeros(side.width, positions)
            outputs[side.layer] = ClassSums(count, origin, mean * SAMPLES, squares)
        for side in group.consumers:
            values = torch.randn(4 * side.width, side.width, dtype=torch.float64).relu()
            inputs[side.layer] = InputMoments(len(values), values.T @ values)
    return Activations(outputs, inputs, CLASSES * SAMPLES)


def images(count: int) -> Sequence[tuple[Any, ...]]:
    """Made-up ones, by batch, where a cut keeps them."""
    collector = SampleCollector(count)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        collector.add((torch.randn(size, 3, 224, 224),), torch.zeros(size))
    collector.finish()
    assert collector.samples is not None
    return collector.samples[0]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of a block to an entry."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def case(grid: int, class_pairs: int | None, recover: int, residual: bool) -> dict[str, Any]:
    """One cut, in this process."""
    torch.manual_seed(0)
    model, seconds = resnet50().eval(), dict[str, float]()
    with torch.no_grad():
        model(torch.randn(BATCH, 3, 224, 224))
    plain = peak_bytes()
    example = (torch.randn(2, 3, 224, 224),)
    with timed(seconds, "groups"):
        groups = prunable_groups(model, example, residual=residual).groups
    activations = made_up(groups, grid)
    state = sum(t.nbytes for s in activations.outputs.values() for t in (s.origin, s.total, s.squares))
    state += sum(inputs.held.nbytes for inputs in activations.inputs.values())
    before = measure_complexity(model, (example[0][:1],))
    refit = None
    if recover:
        layers = dict.fromkeys(side.layer for group in groups for side in group.consumers)
        with timed(seconds, "targets"):
            later = correctable_layers(model)
            refit = prepare_refit(model, layers, images(recover), later=later)

    for part in ("score_channels", "trace_curves", "damage_curve"):
        watch(part, seconds)
    config = SelectionConfig(flops=0.5, grid=grid, class_pairs=class_pairs)
    with timed(seconds, "selection"):
        sizes = None if refit is None else output_sizes(refit.targets)
        chosen = allocation.select_groups(
            groups,
            weighing.weigh_groups(model, groups, activations, config, sizes=sizes),
            config,
            layer_flops=before.by_layer,
            budget=allocation.flops_budget(config, before, before),
        )
    with timed(seconds, "looking"):
        map_groups(groups, chosen, activations)
    kept = {name: selection.kept.tolist() for name, selection in chosen.selections.items()}
    with timed(seconds, "cut"):
        moments = activations.input_moments
        prune(
            model, build_plan(groups, kept), example, groups=groups, input_moments=moments, refit=refit
        )
    after = measure_complexity(model, (example[0][:1],))
    whole = sum(
        seconds[name] for name in ("groups", "targets", "selection", "looking", "cut") if name in seconds
    )
    return {
        "grid": grid,
        "residual": residual,
        "class pairs": chosen.comparison.class_pairs,
        "recovery samples": recover,
        "whole s": whole,
        **{f"{name} s": value for name, value in seconds.items()},
        "FLOPs": before.flops / after.flops,
        "error": chosen.comparison.sampling_error,
        "state MB": state / 2**20,
        "validation MB": plain / 2**20,
        "peak MB": peak_bytes() / 2**20,
    }


def watch(part: str, seconds: dict[str, float]) -> None:
    """Time all calls of a function that the selection uses."""
    work = getattr(weighing, part)

    def timed_work(*arguments: Any) -> Any:
        with timed(seconds, part):
            return work(*arguments)

    setattr(weighing, part, timed_work)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--grid", type=int, help="one case, as JSON")
    parser.add_argument("--class-pairs", type=int)
    parser.add_argument("--recover", type=int, default=0, metavar="SAMPLES")
    parser.add_argument("--residual", action="store_true")
    options = parser.parse_args()
    if options.grid:
        print(json.dumps(case(options.grid, options.class_pairs, options.recover, options.residual)))
        return
    rows = [in_a_fresh_process(__file__, *found) for found in CASES]
    record(options.out, "cutting", rows)
    parts = ("groups s", "targets s", "score_channels s", "trace_curves s", "damage_curve s")
    parts += ("looking s", "cut s")
    draw_bars(
        options.out / "cutting.png",
        [
            f"grid={row['grid']}, {row['class pairs']:,} class pairs"
            + (", recovered" if row["recovery samples"] else "")
            + (", residual" if row["residual"] else "")
            for row in rows
        ],
        {name.removesuffix(" s"): [row.get(name, 0.0) for row in rows] for name in parts},
        "seconds of a whole cut of ResNet-50, 1000 classes",
        stacked=True,
    )


if __name__ == "__main__":
    sys.exit(main())
