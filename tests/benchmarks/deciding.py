"""What it takes to decide by measured cuts: ResNet-50 with 1000 classes at 224 px.

    python tests/benchmarks/deciding.py --out OUT

Images, labels and weights are made up, and few, so that it takes minutes. What a depth takes grows with
the samples that it is measured on and refitted to; hence it is told in forward passes of one sample,
from which the last columns follow for the default numbers of samples, and validation sets of two sizes.
"""

import argparse
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import record
from torchvision.models import resnet50

from acsp_lightning import PruningSettings, SelectionConfig, preview
from acsp_lightning.capture.samples import LEAST
from acsp_lightning.functional import ChannelSelection
from acsp_lightning.selection.exploration import REFINED, SPREAD
from acsp_lightning.selection.tradeoff import Depth
from acsp_lightning.selection.trials import FEW_SAMPLES, Trials

SAMPLES = 128  # half of them are held back
CLASSES = 1000
VALIDATION = (5_000, 50_000)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--size", type=int, default=224, help="pixels along a side")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.7, 0.5])
    options = parser.parse_args()
    torch.manual_seed(0)
    model = resnet50().eval()
    images = torch.randn(SAMPLES, 3, options.size, options.size)
    batches = list(zip(images.split(32), torch.randint(CLASSES, (SAMPLES,)).split(32), strict=True))
    record(options.out, "deciding", [row(model, images, batches, options.depths)])


def row(
    model: torch.nn.Module, images: torch.Tensor, batches: list[Any], shares: list[float]
) -> dict[str, Any]:
    """One line of the record."""
    with torch.no_grad():
        model(images[:32])
        start = time.perf_counter()
        model(images[:64])
        forward = (time.perf_counter() - start) / 64
    seconds: list[float] = []
    measure = Trials.measure

    def timed(self: Trials, selections: Mapping[str, ChannelSelection]) -> Depth:
        start = time.perf_counter()
        found = measure(self, selections)
        seconds.append(time.perf_counter() - start)
        return found

    start = time.perf_counter()
    with warnings.catch_warnings(), patch.object(Trials, "measure", timed):
        warnings.simplefilter("ignore")  # random weights classify nothing
        preview(model, batches, SelectionConfig(flops=shares[0]), trade_off=shares)
    whole = time.perf_counter() - start
    # A sample costs a depth a pass of its own where it is measured on, and more where it is fitted to.
    depth = sum(seconds) / len(seconds) / forward
    fitted = depth / (SAMPLES / 2) - 1
    by_default = PruningSettings().measured_samples + fitted * FEW_SAMPLES
    found: dict[str, Any] = {
        "forward s": forward,
        "depths": len(seconds),
        "passes a depth": depth,
        "share here": sum(seconds) / whole,
        "passes by default": by_default,
    }
    for size in VALIDATION:
        # The capture, the accuracy before and after, and the refit; what no sample takes part in is left
        # out, so that the share is rather too large.
        cut = 3 * size + (1 + fitted) * LEAST  # of images this large
        deciding = (SPREAD + REFINED) * by_default
        found[f"share of {size:,}"] = deciding / (cut + deciding)
    return found


if __name__ == "__main__":
    main()
