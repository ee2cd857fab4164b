"""What capturing costs a validation epoch, and what the callback costs all others.

    python tests/benchmarks/capturing.py --out OUT

Each network is validated on made-up images in one fit without the callback and in one with it, which
captures every other validation and cuts nothing.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from measuring import draw_bars, record
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import mobilenet_v2

from acsp_lightning import ACSPPruningCallback, SelectionConfig
from acsp_lightning.zoo import ImageClassifier, resnet56

CASES = {
    "ResNet-56, 32 x 32": (lambda: resnet56(num_classes=10), 32, 10, 64, 40),
    "MobileNet-V2, 128 x 128": (lambda: mobilenet_v2(num_classes=100), 128, 100, 32, 25),
}


class Clock(pl.Callback):
    """Seconds of every validation, from before all callbacks to after them: on the clock, and of CPU."""

    def __init__(self) -> None:
        self.started = 0.0, 0.0
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter(), time.process_time()


class LastClock(pl.Callback):
    """Ends what a clock began."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        clock, cpu = self.clock.started
        self.clock.seconds.append(time.perf_counter() - clock)
        self.clock.cpu.append(time.process_time() - cpu)


class Weighed(ACSPPruningCallback):
    """Notes how much it holds after a validation, and makes no cut of it."""

    held = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._captured is not None:
            found = self._captured.activations
            tensors: list[Tensor] = [inputs.held for inputs in found.inputs.values()]
            tensors += [t for s in found.outputs.values() for t in (s.origin, s.total, s.squares)]
            self.held = sum(tensor.nbytes for tensor in tensors)
        self._captured = None


def fit(
    network: nn.Module, size: int, classes: int, batch: int, batches: int, grid: int | None = None
) -> Any:
    """The clock of every validation, and the pruning callback if there is one."""
    images = torch.randn(batch * batches, 3, size, size)
    data = TensorDataset(images, torch.arange(len(images)) % classes)
    loader = DataLoader(data, batch_size=batch)
    few = DataLoader(TensorDataset(images[:2], torch.zeros(2, dtype=torch.int64)), batch_size=2)
    clock = Clock()
    pruning = []
    if grid is not None:
        pruning = [Weighed(epochs=[1, 3, 5, 7, 9], selection=SelectionConfig(grid=grid))]
    trainer = pl.Trainer(
        max_epochs=12,
        num_sanity_val_steps=0,
        callbacks=[clock, *pruning, LastClock(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ImageClassifier(network, num_classes=classes)
    trainer.fit(module, few, loader)
    return clock, *pruning


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    rows = []
    for name, (network, size, classes, batch, batches) in CASES.items():
        setting = size, classes, batch, batches
        for grid in (1, 4):
            pl.seed_everything(0, verbose=False)
            (without,) = fit(network(), *setting)
            clock, pruning = fit(network(), *setting, grid)
            plain, captured = clock.seconds[2:11:2], clock.seconds[1:10:2]
            rows.append(
                {
                    "network": name,
                    "grid": grid,
                    "plain s": statistics.median(plain),
                    "capturing / plain": statistics.median(captured) / statistics.median(plain),
                    "of CPU": statistics.median(clock.cpu[1:10:2])
                    / statistics.median(clock.cpu[2:11:2]),
                    "plain / without": statistics.median(plain) / statistics.median(without.seconds[1:]),
                    "without CPU": statistics.median(clock.cpu[2:11:2])
                    / statistics.median(without.cpu[1:]),
                    "state MB": pruning.held / 2**20,
                }
            )
    record(options.out, "capturing", rows)
    draw_bars(
        options.out / "capturing.png",
        [f"{row['network']}, grid={row['grid']}" for row in rows],
        {name: [row[name] for row in rows] for name in ("capturing / plain", "of CPU")},
        "capturing validation / plain validation",
        line=(1.25, "at most"),
    )


if __name__ == "__main__":
    main()
