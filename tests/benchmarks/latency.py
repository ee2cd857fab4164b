"""A share of the time: asked for and measured, against a share of the FLOPs with the best rounding.

    python tests/benchmarks/latency.py --out OUT
    python tests/benchmarks/latency.py --out OUT --only resnet56 vgg16 --batches 1

ResNet-50, MobileNet-V2 and EfficientNet-B0 at 224 x 224, VGG-16 and ResNet-56 at 32 x 32, with random
weights and images, so that the error of the outputs and not accuracy is compared. Every row is a cut by
``latency=``, timed once more after it was made, beside cuts by ``flops=`` with several ``round_to``: the
least damage of those that are as fast, and how much slower the fastest of no more damage is.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import record
from torch import nn
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet50

from acsp_lightning import LatencyAt, SelectionConfig, compare_latency, measure_complexity
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.example import Example
from acsp_lightning.zoo import resnet56, vgg16_bn

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet50": (lambda: resnet50(), 224, 32),
    "vgg16": (lambda: vgg16_bn(num_classes=10), 32, 256),
    "resnet56": (lambda: resnet56(num_classes=10), 32, 256),
    "mobilenet_v2": (lambda: mobilenet_v2(), 224, 32),
    "efficientnet_b0": (lambda: efficientnet_b0(), 224, 32),
}
SHARES = (0.7, 0.5)
FLOPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
ROUNDINGS = (1, 8, 16, 32)
UNSEEN = 32  # images on which outputs are compared


@dataclass(frozen=True)
class Cut:
    """A cut that was made: how it was asked for, and what it is."""

    asked: str
    flops: float
    damage: float
    time: float
    predicted: float | None = None
    seconds: float | None = None


class Bench:
    """A network that was captured once, and is cut again and again at one batch size."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        build, size, samples = CASES[name]
        self.network = build().eval()
        images, labels = torch.randn(samples, 3, size, size), torch.arange(samples) % 4
        batches = list(zip(images.split(32), labels.split(32), strict=True))
        self.site = CopySite(self.network, batches)
        self.batch, self.samples = batch, samples
        self.unseen = torch.randn(UNSEEN, 3, size, size)
        self.example, self.captured = self._capture(batches)

    def _settings(self, round_to: int = 1, **selection: Any) -> PruningSettings:
        return PruningSettings(
            selection=SelectionConfig(**{"curve": "damage", **selection}),
            round_to=round_to,
            recovery="fold",
            recovery_samples=self.samples,
            latency_at=LatencyAt(batch_size=self.batch),
        )

    def _capture(self, batches: Sequence[Any]) -> tuple[Example, Captured]:
        return capture_network(self.network, batches, self._settings(flops=0.99))

    def cut(self, round_to: int = 1, **selection: Any) -> Cut:
        """Make a cut, and time it in turns with the uncut network."""
        settings = self._settings(round_to, **selection)
        proposal, recovery = decide_cut(self.site, self.captured, settings, self.example)
        smaller = self.site.prune(proposal, recovery)
        (found,) = compare_latency(self.network, smaller, self.example.counted, (self.batch,))
        times = proposal.times
        target = ", ".join(f"{key}={value}" for key, value in selection.items())
        return Cut(
            asked=f"{target}, round_to={round_to}" if round_to > 1 else target,
            flops=measure_complexity(smaller, self.example.counted).flops / proposal.before.flops,
            damage=self._damage(smaller),
            time=1 / found.speedup,
            predicted=None if times is None else times.predicted,
            seconds=None if times is None else times.spent,
        )

    def _damage(self, smaller: nn.Module) -> float:
        """Squared error of the outputs of a cut network, as a share of their variance over images."""
        with torch.no_grad():
            whole, rest = self.network(self.unseen), smaller.eval()(self.unseen)
        error, spread = (rest - whole).square().sum(), (whole - whole.mean(0)).square().sum()
        return float(error / spread)


def rows(name: str, batch: int) -> Iterator[dict[str, Any]]:
    """Cuts by time, each beside cuts by FLOPs."""
    bench = Bench(name, batch)
    by_flops = [bench.cut(round_to, flops=share) for round_to in ROUNDINGS for share in FLOPS
                if round_to <= min(g.width for g in bench.captured.groups)]  # fmt: skip
    for share in SHARES:
        ours = bench.cut(latency=share)
        as_fast = [cut for cut in by_flops if cut.time <= 1.02 * ours.time]
        no_worse = [cut for cut in by_flops if cut.damage <= 1.02 * ours.damage]
        yield {
            "network": name,
            "batch": batch,
            "asked": share,
            "ours": asdict(ours),
            "error": ours.time / share - 1,
            "damage of flops= as fast": min((cut.damage for cut in as_fast), default=float("nan")),
            "faster at equal damage": min((cut.time for cut in no_worse), default=float("nan"))
            / ours.time,
            "ratio of the FLOPs on the clock": ours.flops / ours.time,
        }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(
        "network          batch  asked  measured   error  predicted  FLOPs  faster  of FLOPs  spent, s"
    )
    for name in options.only:
        for batch in options.batches:
            for row in rows(name, batch):
                ours = row["ours"]
                print(
                    f"{name:16} {batch:5}  {row['asked']:5}  {ours['time']:8.3f}  {row['error']:+6.1%}  "
                    f"{ours['predicted']:9.3f}  {ours['flops']:5.3f}  "
                    f"{row['faster at equal damage']:5.2f}x  "
                    f"{row['ratio of the FLOPs on the clock']:8.2f}  {ours['seconds']:8.0f}",
                    flush=True,
                )
                found.append(row)
    errors = np.abs([row["error"] for row in found])
    print(f"within 5 %: {(errors <= 0.05).mean():.0%}, within 10 %: {(errors <= 0.1).mean():.0%}")
    record(options.out, "latency", found)


if __name__ == "__main__":
    main()
