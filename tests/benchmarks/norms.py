"""Accuracy straight after a cut of networks whose norms take all channels together.

    python tests/benchmarks/norms.py --out OUT
    python tests/benchmarks/norms.py --out OUT --data DIR

Without DIR the images are scikit-learn's digits, enlarged to 32 x 32. It holds train/CLASS/*.png and
test/CLASS/*.png, all of one size, such as those of CIFAR-10. A small ConvNeXt and a small BiT are
trained for some epochs, or read from OUT if they were before. Each is cut to the same shares of its
FLOPs with ``norms="exact"`` and with ``norms="refit"``, and with the latter but no scale corrected, or
nothing recovered; what is captured are training images. Accuracies are on the test images, without any
training after the cut. Rows go to OUT/norms.json, and a table is printed.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import PruningSettings, SelectionConfig, measure_complexity
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite

SHARES = (0.8, 0.6, 0.4)
METHODS = {
    "exact": {"norms": "exact"},
    "refit": {"norms": "refit"},
    "refit, norms not corrected": {"norms": "refit"},
    "refit, not recovered": {"norms": "refit", "recovery": "none"},
}
BATCH = 125
CAPTURED = 1000
EPOCHS = 12
DIGITS_FOR_TRAINING = 1297
Images = tuple[Tensor, Tensor]


def convnext() -> nn.Module:
    """ConvNeXt with eight blocks and LayerNorm."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(
        depths=(2, 2, 2, 2), dims=(24, 48, 96, 192), patch_size=2, num_classes=10, ls_init_value=None
    )


def bit() -> nn.Module:
    """ResNetV2 with GroupNorm and standardised filters."""
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=(2, 2, 2),
        channels=(64, 128, 256),
        stem_chs=64,
        num_classes=10,
        conv_layer=StdConv2d,
        norm_layer=partial(GroupNormAct, num_groups=8),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"convnext": convnext, "bit": bit}


def read_images(folder: Path) -> Images:
    """All images of a folder of classes, (N, 3, H, W) in [-1, 1], and their labels."""
    files = [(f, label) for label, c in enumerate(sorted(folder.iterdir())) for f in sorted(c.iterdir())]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(), torch.tensor([label for _, label in files])


def digits() -> tuple[Images, Images]:
    """Images of digits as :func:`read_images` gives them, for training and for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 8 - 1
    images = functional.interpolate(images, 32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, last = order[:DIGITS_FOR_TRAINING], order[DIGITS_FOR_TRAINING:]
    return (images[first], labels[first]), (images[last], labels[last])


def batches(data: Images, order: Sequence[int] | Tensor | None = None) -> Iterator[Images]:
    """Batches in an order, or all of them as they come."""
    images, labels = data
    places = torch.arange(len(labels)) if order is None else torch.as_tensor(order)
    for chosen in places.split(BATCH):
        yield images[chosen], labels[chosen]


def train(network: nn.Module, data: Images, epochs: int) -> None:
    """AdamW with one cycle; shifts by an eighth."""
    steps = epochs * -(-len(data[1]) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for images, labels in batches(data, torch.randperm(len(data[1]))):
            size, most = images.shape[-1], images.shape[-1] // 8
            images = functional.pad(images, (most,) * 4, mode="reflect")
            top, left = torch.randint(2 * most + 1, (2,)).tolist()
            images = images[:, :, top : top + size, left : left + size]
            optimizer.zero_grad()
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: Images) -> float:
    """Top-1 accuracy, in [0, 1]."""
    right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches(data))
    return right / len(data[1])


def trained(name: str, out: Path, data: Images, epochs: int) -> nn.Module:
    """The network, trained or read."""
    torch.manual_seed(0)
    network, file = NETWORKS[name](), out / f"{name}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file))
        return network.eval()
    start = time.process_time()
    train(network, data, epochs)
    print(f"{name}: trained for {epochs} epochs in {time.process_time() - start:.0f} s", flush=True)
    torch.save(network.state_dict(), file)
    return network


def cut(network: nn.Module, captured: Sequence[Images], share: float, method: str) -> nn.Module:
    """A copy with this share of the FLOPs.

    Raises:
        ValueError: if the network cannot become so small.
    """
    settings = PruningSettings(selection=SelectionConfig(flops=share), residual=True, **METHODS[method])
    site = CopySite(network, captured)
    example, found = capture_network(network, captured, settings)
    proposal, recovery = decide_cut(site, found, settings, example)
    if method == "refit, norms not corrected" and recovery.refit is not None:
        recovery = replace(recovery, refit=replace(recovery.refit, norms={}))
    return site.prune(proposal, recovery)


def rows_of(name: str, network: nn.Module, captured: Sequence[Images], test: Images) -> Iterator[Any]:
    """One row for the network, and one for every method and share."""
    one = test[0][:1]
    before = measure_complexity(network, one).flops
    yield {"network": name, "method": "-", "flops": 1.0, "accuracy": accuracy(network, test)}
    for share in SHARES:
        for method in METHODS:
            row = {"network": name, "method": method, "target": share}
            try:
                smaller = cut(network, captured, share, method)
            except ValueError as error:
                yield row | {"error": str(error)}
                continue
            flops = measure_complexity(smaller, one).flops / before
            yield row | {"flops": flops, "accuracy": accuracy(smaller, test)}


def table(rows: Sequence[Any]) -> str:
    """Accuracy by network and share, a column for each method."""
    lines = [f"| network | FLOPs | {' | '.join(METHODS)} |", f"|---|---|{'---|' * len(METHODS)}"]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        whole = f"{own[0]['accuracy']:.1%}"
        lines.append(f"| {name} | 100% | {' | '.join([whole] * len(METHODS))} |")
        for share in SHARES:
            found = {row["method"]: row for row in own if row.get("target") == share}
            cells = [f"{found[m]['accuracy']:.1%}" if "accuracy" in found[m] else "-" for m in METHODS]
            lines.append(f"| | {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        training, test = digits()
    else:
        training, test = (read_images(options.data / part) for part in ("train", "test"))
    chosen = torch.randperm(len(training[1]), generator=torch.Generator().manual_seed(1))[:CAPTURED]
    rows = []
    for name in options.networks:
        network = trained(name, options.out, training, options.epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in rows_of(name, network, list(batches(training, chosen)), test):
                rows.append(row)
                print(row, flush=True)
                (options.out / "norms.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
