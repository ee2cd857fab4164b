"""A share of the time: asked for and measured, against a share of the FLOPs with the best rounding.

    python tests/benchmarks/latency.py --out OUT
    python tests/benchmarks/latency.py --out OUT --only resnet56 vgg16 --batches 1
    python tests/benchmarks/latency.py --out OUT --only resnet56 --weights FILE --data DIR

ResNet-50, MobileNet-V2 and EfficientNet-B0 at 224 x 224, VGG-16 and ResNet-56 at 32 x 32, with random
weights and images and calibrated BatchNorms, so that the error of the outputs and not accuracy is
compared. With trained weights, and a folder that holds train/CLASS/*.png and test/CLASS/*.png, it is the
errors on the test images straight after the cut, in percent. A row is a cut by ``latency=``, timed once
more after it was made, beside cuts by ``flops=`` with several ``round_to``: between these, time and the
logarithm of the damage are interpolated for every rounding, and the best one counts.

Every cut is written to OUT/latency at once; the same command goes on from there.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import record
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet50

from acsp_lightning import LatencyAt, SelectionConfig, compare_latency, measure_complexity
from acsp_lightning.capture.batches import read_batch
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.files import atomic_write
from acsp_lightning.measure.accuracy import count_correct
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm
from acsp_lightning.structure.example import Example
from acsp_lightning.zoo import ImageClassifier, ImageFolderDataModule, resnet56, vgg16_bn

Batch = tuple[Tensor, Tensor]

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet50": (lambda: resnet50(), 224, 32),
    "vgg16": (lambda: vgg16_bn(num_classes=10), 32, 256),
    "resnet56": (lambda: resnet56(num_classes=10), 32, 256),
    "mobilenet_v2": (lambda: mobilenet_v2(), 224, 32),
    "efficientnet_b0": (lambda: efficientnet_b0(), 224, 32),
}
SHARES = (0.7, 0.5)
FLOPS = (0.8, 0.6, 0.4, 0.2)
ROUNDINGS = (1, 8, 16)
UNSEEN = 32  # images on which outputs are compared
FEWEST_PASSES = 9


@dataclass(frozen=True)
class Cut:
    """A cut that was made: how it was asked for, and what it is."""

    round_to: int
    flops: float
    damage: float
    time: float
    predicted: float | None = None
    checked: float | None = None
    seconds: float | None = None


class Bench:
    """A network that was captured once, and is cut again and again at one batch size.

    What was cut before is read from a file.
    """

    def __init__(self, name: str, batch: int, path: Path, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        build, size, samples = CASES[name]
        self.network = build().eval()
        self.judges: list[Batch] = []
        if options.weights is None:
            images, labels = torch.randn(samples, 3, size, size), torch.arange(samples) % 4
            batches = list(zip(images.split(32), labels.split(32), strict=True))
            recalibrate_batchnorm(self.network, images.split(32), samples // 32)
        else:
            batches, self.judges = pictures(options.data, size)
            ImageClassifier(self.network, num_classes=10, weights=options.weights)
        self.site = CopySite(self.network, batches, times_file=path.with_name("times.json"))
        self.batch, self.samples, self.path, self.residual = batch, samples, path, options.residual
        self.unseen = torch.randn(UNSEEN, 3, size, size)
        self.example, self.captured = self._capture(batches)
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def _settings(self, round_to: int = 1, **selection: Any) -> PruningSettings:
        return PruningSettings(
            selection=SelectionConfig(**{"curve": "damage", **selection}),
            round_to=round_to,
            residual=self.residual or None,
            recovery="least_squares" if self.judges else "fold",
            recovery_samples=self.samples,
            latency_at=LatencyAt(batch_size=self.batch),
        )

    def _capture(self, batches: Sequence[Any]) -> tuple[Example, Captured]:
        return capture_network(self.network, batches, self._settings(flops=0.99))

    def cut(self, round_to: int = 1, **selection: float) -> Cut | None:
        """Make a cut, and time it in turns with the uncut network; None if it is refused."""
        asked = f"{selection} round_to={round_to}"
        if asked not in self.known:
            try:
                found = asdict(self._cut(round_to, **selection))
            except ValueError as error:
                print(f"{self.path.stem}: {error}", flush=True)
                found = None
            self.known[asked] = found
            with atomic_write(self.path) as draft:
                draft.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        return None if self.known[asked] is None else Cut(**self.known[asked])

    def _cut(self, round_to: int, **selection: float) -> Cut:
        settings = self._settings(round_to, **selection)
        proposal, recovery = decide_cut(self.site, self.captured, settings, self.example)
        smaller = self.site.prune(proposal, recovery)
        (found,) = compare_latency(
            self.network,
            smaller,
            self.example.counted,
            (self.batch,),
            min_runs=FEWEST_PASSES,
            min_seconds=5.0,
        )
        times = proposal.times
        return Cut(
            round_to=round_to,
            flops=measure_complexity(smaller, self.example.counted).flops / proposal.before.flops,
            damage=self._damage(smaller),
            time=1 / found.speedup,
            predicted=None if times is None else times.predicted,
            checked=None if times is None else times.share,
            seconds=None if times is None else times.spent,
        )

    def _damage(self, smaller: nn.Module) -> float:
        """Squared error of the outputs of a cut network, as a share of their variance over images.

        Of trained networks: errors on images that they were not trained on, in percent.
        """
        if self.judges:
            found = count_correct(smaller, self.judges, read_batch)
            assert found is not None
            return 100 * (1 - found[0] / found[1])
        with torch.no_grad():
            whole, rest = self.network(self.unseen), smaller.eval()(self.unseen)
        error, spread = (rest - whole).square().sum(), (whole - whole.mean(0)).square().sum()
        return float(error / spread)


def pictures(data: Path, size: int) -> tuple[list[Batch], list[Batch]]:
    """Some images that networks were trained on, and all that they were not."""
    module = ImageFolderDataModule(
        data, val=None, test="test", size=size, augmentation="padded_crop", val_share=0.08, seed=0
    )
    for stage in ("fit", "test"):
        module.setup(stage)
    return list(module.val_dataloader()), list(module.test_dataloader())


def best(cuts: Sequence[Cut], at: float, known: str, wanted: str) -> float:
    """The least of one figure where another has some value; NaN outside of what was cut.

    Args:
        cuts: by several roundings.
        at: the value of the other figure.
        known: "time" or "damage".
        wanted: the other of them.
    """
    found = [float("nan")]
    for round_to in {cut.round_to for cut in cuts}:
        ladder = sorted(
            (cut for cut in cuts if cut.round_to == round_to), key=lambda c: getattr(c, known)
        )
        scale = {"time": lambda x: x, "damage": np.log}
        back = {"time": lambda x: x, "damage": np.exp}
        here = [scale[known](getattr(cut, known)) for cut in ladder]
        there = [scale[wanted](getattr(cut, wanted)) for cut in ladder]
        value = np.interp(scale[known](at), here, there, left=np.nan, right=np.nan)
        found.append(float(back[wanted](value)))
    return float("nan") if np.isnan(found).all() else float(np.nanmin(found))


def rows(name: str, batch: int, out: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cuts by time, each beside cuts by FLOPs."""
    words = [name, str(batch), *["residual"] * options.residual, *["trained"] * bool(options.weights)]
    bench = Bench(name, batch, out / f"{'_'.join(words)}.json", options)
    narrowest = min(group.width for group in bench.captured.groups)
    made = [bench.cut(latency=share) for share in SHARES]
    tried = [
        bench.cut(round_to, flops=share)
        for round_to in ROUNDINGS
        for share in FLOPS
        if round_to <= narrowest
    ]
    by_flops = [cut for cut in tried if cut is not None]
    for share, ours in zip(SHARES, made, strict=True):
        if ours is None:
            yield {"network": name, "batch": batch, "asked": share}
            continue
        yield {
            "network": name,
            "batch": batch,
            "asked": share,
            "measured": ours.time,
            "error": ours.time / share - 1,
            "predicted": ours.predicted,
            "when decided": ours.checked,
            "FLOPs": ours.flops,
            "of FLOPs": ours.flops / ours.time,
            "damage": ours.damage,
            "by flops=": best(by_flops, ours.time, "time", "damage"),
            "faster": best(by_flops, ours.damage, "damage", "time") / ours.time,
            "spent, s": ours.seconds,
        }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--residual", action="store_true", help="cut residual sums as well")
    parser.add_argument("--weights", type=Path, help="state dict of the trained network")
    parser.add_argument("--data", type=Path, help="folder of train/ and test/")
    options = parser.parse_args()
    if (options.weights is None) != (options.data is None):
        parser.error("--weights and --data go together")
    folder = options.out / "latency"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for name in options.only:
        for batch in options.batches:
            found += rows(name, batch, folder, options)
            print(*found[-len(SHARES) :], sep="\n", flush=True)
    errors = np.abs([row["error"] for row in found if "error" in row])
    print(f"within 5 %: {(errors <= 0.05).sum()}, within 10 %: {(errors <= 0.1).sum()} of {len(errors)}")
    record(options.out, "latency", found)


if __name__ == "__main__":
    main()
