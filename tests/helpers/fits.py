"""A tiny problem, tiny networks and a probe, shared by the tests of the callback."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import ACSPPruningCallback, SelectionConfig, apply_plan
from acsp_lightning.serialization import encode

Fit = Callable[..., pl.Trainer]

CLASSES = 3
HALF = SelectionConfig(keep=0.5)


def noisy_images(samples: int, seed: int, size: int = 6) -> TensorDataset:
    """Noisy copies of one pattern per class; every class equally often, in turn."""
    patterns = torch.randn(CLASSES, 1, size, size, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(samples, 1, size, size, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(samples) % CLASSES
    return TensorDataset(patterns[labels] + noise, labels)


def train_loader(samples: int = 24, **options: Any) -> DataLoader[Any]:
    return DataLoader(noisy_images(samples, seed=1), **{"batch_size": 6, "shuffle": True, **options})


def val_loader(samples: int = 18, **options: Any) -> DataLoader[Any]:
    return DataLoader(noisy_images(samples, seed=2), **{"batch_size": 6, **options})


def conv_net(dropout: float = 0.0) -> nn.Sequential:
    """Three groups: conv1 (8), conv2 (6, read after a flatten by fc1) and fc1 (10)."""
    torch.manual_seed(5)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(1, 8, 3, padding=1, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(8))
    net.add_module("relu1", nn.ReLU())
    net.add_module("conv2", nn.Conv2d(8, 6, 3, padding=1, bias=False))
    net.add_module("bn2", nn.BatchNorm2d(6))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool", nn.MaxPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc1", nn.Linear(54, 10))
    net.add_module("relu3", nn.ReLU())
    net.add_module("dropout", nn.Dropout(dropout))
    net.add_module("fc2", nn.Linear(10, CLASSES))
    return net


WIDTHS = {"net.conv1": 8, "net.conv2": 6, "net.fc1": 10, "net.fc2": CLASSES}


def widths(module: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and linear layer, read off the weights themselves."""
    layers = (nn.Conv2d, nn.Linear)
    return {n: len(m.weight) for n, m in module.named_modules() if isinstance(m, layers)}


def halved(*layers: str) -> dict[str, int]:
    return {n: w // 2 if f"{n}".removeprefix("net.") in layers else w for n, w in WIDTHS.items()}


ALL_HALVED = halved("conv1", "conv2", "fc1")


def hooks(module: nn.Module) -> int:
    """Number of forward hooks anywhere in ``module``."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal to the bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def equal(a: Any, b: Any) -> bool:
    """Whether two tensors or plain values are the same to the bit, NaN being NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point():
        return (
            a.shape == b.shape
            and torch.equal(a.isnan(), b.isnan())
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two trees of plain data differ, tensors being compared to the bit."""
    if type(a) is not type(b):
        return [path]
    if isinstance(a, dict | list | tuple):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        if len(a) != len(b) or (isinstance(a, dict) and a.keys() != b.keys()):
            return [path]
        return [found for key in keys for found in differences(a[key], b[key], f"{path}/{key}")]
    return [] if equal(a, b) else [path]


class ResumableLoader(DataLoader[Any]):
    """Goes on where it was, as Lightning asks of loaders that are to be resumed within an epoch."""

    position = 0

    def __iter__(self) -> Iterator[Any]:
        start = self.position
        for place, batch in enumerate(super().__iter__()):
            if place >= start:
                self.position = (place + 1) % len(self)
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Classifier(pl.LightningModule):
    """Any network, counting its steps; ``configure`` makes what configure_optimizers returns."""

    def __init__(
        self,
        net: nn.Module | None = None,
        configure: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = conv_net() if net is None else net
        self.configure = configure
        self.steps = 0
        self.losses: list[float] = []

    def forward(self, images: Any) -> Any:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.log("val_loss", loss, batch_size=len(labels))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.configure is not None:
            return self.configure(self)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Scripted(Classifier):
    """Logs a quality that depends on the width of its first layer alone."""

    def __init__(self, quality: Callable[[int], float], **options: Any) -> None:
        super().__init__(**options)
        self.quality = quality

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.log("quality", self.quality(len(self.net.conv1.weight)))


def only_whole(width: int) -> float:
    return 0.9 if width == 8 else 0.5


def at_least_six(width: int) -> float:
    return 0.9 if width >= 6 else 0.5


class Probe(pl.Callback):
    """Notes (hook, epoch, widths, hooks installed) at every hook of a fit."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, dict[str, int], int]] = []
        self.states: dict[tuple[str, int], dict[str, Tensor]] = {}

    def note(self, hook: str, trainer: pl.Trainer, module: nn.Module) -> None:
        hook = f"sanity_{hook}" if trainer.sanity_checking else hook
        self.seen.append((hook, trainer.current_epoch, widths(module), hooks(module)))

    def at(self, hook: str, epoch: int) -> list[tuple[dict[str, int], int]]:
        return [(w, h) for name, e, w, h in self.seen if (name, e) == (hook, epoch)]

    def names(self) -> Counter[str]:
        return Counter(name for name, *_ in self.seen)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("train_start", trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("train_epoch_start", trainer, pl_module)
        self.states["train_epoch_start", trainer.current_epoch] = snapshot(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("train_batch_start", trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("train_batch_end", trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("validation_start", trainer, pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("validation_batch_start", trainer, pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("validation_batch_end", trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("validation_end", trainer, pl_module)
        self.states["validation_end", trainer.current_epoch] = snapshot(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("train_epoch_end", trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("train_end", trainer, pl_module)


def callback(*epochs: int, **options: Any) -> ACSPPruningCallback:
    """Cuts every group in half after ``epochs`` (0), and draws nothing, unless told otherwise."""
    return ACSPPruningCallback(epochs or (0,), **{"selection": HALF, "report_plots": False, **options})


def cut_network(state: dict[str, Tensor], plan: Any) -> dict[str, Tensor]:
    """What the plan makes of an uncut network."""
    module = Classifier()
    module.load_state_dict(state)
    apply_plan(module, plan)
    return snapshot(module)


class Saver(pl.Callback):
    """Writes a checkpoint at every moment of a fit; stands after the pruning callback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: pl.Trainer, moment: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}-{moment}.ckpt")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "start")

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, idx: int) -> None:
        self.save(trainer, f"batch{idx}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, f"step{trainer.global_step}-validation")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, idx: int, loader: int = 0
    ) -> None:
        self.save(trainer, f"step{trainer.global_step}-validation{idx}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, f"step{trainer.global_step}-validated")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "end")


def sgd(module: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}


def job(
    make_trainer: Fit,
    pruning: ACSPPruningCallback,
    *others: pl.Callback,
    module: Classifier | None = None,
    ckpt_path: Path | str | None = None,
    configure: Any = sgd,
    quality: Callable[[int], float] | None = None,
    val: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """A fit of a fresh module; all that it leaves behind, as plain data."""
    trainer = make_trainer(pruning, *others, **options)
    if module is None:
        module = Scripted(quality, configure=configure) if quality else Classifier(configure=configure)
    trainer.fit(
        module,
        ResumableLoader(noisy_images(24, seed=1), batch_size=6),
        val_loader() if val is None else val,
        ckpt_path=ckpt_path,
        weights_only=True,
    )
    averaged = [c._average_model for c in others if isinstance(c, EMAWeightAveraging)]
    return encode(
        {
            "widths": widths(trainer.lightning_module),
            "weights": snapshot(trainer.lightning_module),
            "averaged": [snapshot(copy) for copy in averaged if copy is not None],
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "steps": pruning.steps,
            "progress": (trainer.current_epoch, trainer.global_step),
        }
    )


def ordered(pruning: pl.Callback, other: pl.Callback, ours_first: bool) -> list[pl.Callback]:
    return [pruning, other] if ours_first else [other, pruning]
