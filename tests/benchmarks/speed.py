"""Faster on the clock: how much of the saved FLOPs is saved time, and which layers hold it back.

    python tests/benchmarks/speed.py --out OUT

VGG-16 at 32 x 32 and ResNet-50 at 224 x 224 with random weights, cut by the default rule to the share of
FLOPs of the paper's ResNet-50; before and after are timed in turns in one run.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from measuring import draw_bars, record
from torch import Tensor, nn
from torchvision.models import resnet50

from acsp_lightning import SelectionConfig, compare_latency, measure_complexity
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.settings import PruningSettings
from acsp_lightning.zoo import vgg16_bn

FLOPS = 1 / 2.25
CASES = {
    "VGG-16, 32 x 32": (lambda: vgg16_bn(num_classes=10), 32, 256),
    "ResNet-50, 224 x 224": (lambda: resnet50(), 224, 32),
}
WORST = 5  # layers that are named
PASSES = 7  # to time single layers


def cut(network: nn.Module, size: int, samples: int, round_to: int) -> nn.Module:
    """A cut copy."""
    images, labels = torch.randn(samples, 3, size, size), torch.arange(samples) % 4
    batches = list(zip(images.split(32), labels.split(32), strict=True))
    settings = PruningSettings(
        selection=SelectionConfig(flops=FLOPS),
        round_to=round_to,
        recovery="fold",
        recovery_samples=samples,
    )
    example, captured = capture_network(network, batches, settings)
    site = CopySite(network, batches)
    return site.prune(*decide_cut(site, captured, settings, example))


def layer_seconds(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Median seconds of every module without children in a forward pass."""
    found: dict[str, list[float]] = defaultdict(list)
    started: dict[str, float] = {}
    handles = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:

            def before(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                started[name] = time.perf_counter()

            def after(_module: nn.Module, _inputs: Any, _output: Any, name: str = name) -> None:
                found[name].append(time.perf_counter() - started[name])

            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
    with torch.no_grad():
        for _ in range(PASSES):
            network(inputs)
    for handle in handles:
        handle.remove()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def held_back(before: nn.Module, after: nn.Module, inputs: Tensor) -> list[dict[str, Any]]:
    """Layers that lose most time against a cut that makes each as much faster as it saves FLOPs."""
    whole, rest = layer_seconds(before, inputs), layer_seconds(after, inputs)
    flops = [measure_complexity(network, inputs[:1]) for network in (before, after)]
    ratio = flops[0].flops / flops[1].flops
    rows = []
    for name, seconds in whole.items():
        saved = ratio
        if flops[1].by_layer.get(name):
            saved = flops[0].by_layer[name] / flops[1].by_layer[name]
        lost = rest[name] - seconds / saved
        rows.append(
            {
                "layer": name,
                "kind": type(before.get_submodule(name)).__name__,
                "before ms": 1000 * seconds,
                "after ms": 1000 * rest[name],
                "FLOPs": saved,
                "lost ms": 1000 * lost,
            }
        )
    return sorted(rows, key=lambda row: -row["lost ms"])[:WORST]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    rows, layers = [], []
    for name, (make, size, samples) in CASES.items():
        torch.manual_seed(0)
        network = make().eval()
        for round_to in options.round_to:
            smaller = cut(network, size, samples, round_to)
            inputs = torch.randn(32, 3, size, size)
            saved = (
                measure_complexity(network, inputs[:1]).flops
                / measure_complexity(smaller, inputs[:1]).flops
            )
            for timing in compare_latency(network, smaller, inputs, batch_sizes=[1, 32]):
                rows.append(
                    {
                        "network": name,
                        "round_to": round_to,
                        "batch": timing.before.batch_size,
                        "before ms": 1000 * timing.before.median,
                        "after ms": 1000 * timing.after.median,
                        "FLOPs": saved,
                        "faster": timing.speedup,
                        "share": timing.speedup / saved,
                    }
                )
            layers += [
                {"network": name, "round_to": round_to} | row
                for row in held_back(network, smaller, inputs)
            ]
    record(options.out, "speed", rows)
    draw_bars(
        options.out / "speed.png",
        [f"{row['network']}, round_to={row['round_to']}, batch {row['batch']}" for row in rows],
        {"FLOPs, times fewer": [r["FLOPs"] for r in rows], "faster": [r["faster"] for r in rows]},
        "before / after",
    )
    record(options.out, "speed_layers", layers)


if __name__ == "__main__":
    main()
