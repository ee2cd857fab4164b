"""Bad input is named, before the first training batch where it can be known, and nothing is touched."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    CLASSES,
    HALF,
    WIDTHS,
    Classifier,
    Fit,
    callback,
    hooks,
    noisy_images,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import SelectionConfig, UnsupportedStructureError

Build = Callable[[], Any]


class NoForward(Classifier):
    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0])


class NoValidation(Classifier):
    validation_step = pl.LightningModule.validation_step


def frozen() -> Classifier:
    module = Classifier()
    module.requires_grad_(False)
    return module


def only_an_output_layer() -> Classifier:
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)))


def relabelled(change: Callable[[Tensor], Any]) -> Any:
    images, labels = noisy_images(18, seed=2).tensors
    return DataLoader(TensorDataset(images, change(labels)), batch_size=6)


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES)


class Lenient(Classifier):
    """A validation that does not mind what the labels are, so that the callback is the first to."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch["image"] if isinstance(batch, dict) else batch[0])


BEFORE_TRAINING: dict[str, tuple[Any, ...]] = {
    "epoch beyond the last cut": (
        Classifier,
        lambda: callback(2),
        {},
        r"epochs has 2, but with max_epochs=3 .* allowed is at most 1",
    ),
    "single epoch": (
        Classifier,
        callback,
        {"max_epochs": 1},
        r"epochs has 0, but with max_epochs=1 .* max_epochs must be at least 2",
    ),
    "epoch without validation": (
        Classifier,
        callback,
        {"check_val_every_n_epoch": 2},
        r"check_val_every_n_epoch=2 leaves that epoch .* epochs 1, 3, \.\.\. have one",
    ),
    "validation by steps leaves the epoch out": (
        Classifier,
        lambda: callback(1),
        {"check_val_every_n_epoch": None, "val_check_interval": 9},
        r"epochs has 1, but val_check_interval=9",
    ),
    "no validation batches": (
        Classifier,
        callback,
        {"limit_val_batches": 0},
        r"this fit has none.*limit_val_batches",
    ),
    "unknown include": (
        Classifier,
        lambda: callback(include=["net.conv3"]),
        {},
        r"include has 'net\.conv3', which matches no .* nearest is 'net\.conv[12]'",
    ),
    "unknown exclude": (
        Classifier,
        lambda: callback(exclude=["conv1"]),
        {},
        r"exclude has 'conv1', which matches no .* nearest is 'net\.conv1'",
    ),
    "float labels": (
        Lenient,
        callback,
        {"val": lambda: relabelled(Tensor.float)},
        r"Labels are torch\.float32 of shape \(6,\).*one integer class index",
    ),
    "multi-label": (
        Lenient,
        callback,
        {"val": lambda: relabelled(lambda y: 1 - one_hot(y).float())},
        r"Labels have shape \(6, 3\), several for each sample.*multi-label",
    ),
    "one-hot labels": (
        Lenient,
        callback,
        {"val": lambda: relabelled(one_hot)},
        r"Labels have shape \(6, 3\), one-hot rows.*argmax",
    ),
    "bool labels": (
        Lenient,
        callback,
        {"val": lambda: relabelled(lambda y: y > 0)},
        r"Labels are torch\.bool",
    ),
    "negative labels": (
        Lenient,
        callback,
        {"val": lambda: relabelled(lambda y: y - 1)},
        r"Labels contain -1",
    ),
    "all frozen": (frozen, callback, {}, r"All parameters of Classifier are frozen.*Unfreeze"),
    "only an output layer": (
        only_an_output_layer,
        callback,
        {},
        r"No layer of Classifier can be pruned.*output layer is never cut",
    ),
    "everything excluded": (
        Classifier,
        lambda: callback(exclude=["*"]),
        {},
        r"No layer of Classifier can be pruned with include=\['\*'\], exclude=\['\*'\]",
    ),
    "unreadable batch": (
        Lenient,
        callback,
        {
            "val": lambda: DataLoader(
                TensorDataset(*noisy_images(18, seed=2).tensors, torch.arange(18)), batch_size=6
            )
        },
        r"Cannot tell inputs from labels in a validation batch that is a list of 3 items.*read_batch=",
    ),
    "round_to above a width": (
        Classifier,
        lambda: callback(round_to=7),
        {},
        r"round_to is 7, but 'net\.conv2' has only 6 channels",
    ),
    "unreachable flops": (
        Classifier,
        lambda: callback(selection=SelectionConfig(flops=0.01)),
        {},
        r"flops=0\.01 cannot be reached.*0\.\d+ of the FLOPs are left",
    ),
    "no forward": (NoForward, callback, {}, r"NoForward\.forward failed on the example inputs"),
}


@pytest.mark.parametrize("case", BEFORE_TRAINING)
def test_raised_before_the_first_training_batch(fit: Fit, case: str) -> None:
    build, pruning, options, message = BEFORE_TRAINING[case]
    module, pruning = build(), pruning()
    before, trainable = snapshot(module), [p.requires_grad for p in module.parameters()]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        fit(module, [pruning], **options)
    assert module.steps == 0
    assert hooks(module) == 0
    assert pruning.steps == []
    assert same_state(snapshot(module), before)
    assert [p.requires_grad for p in module.parameters()] == trainable


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_strategies_that_load_into_the_uncut_module(strategy: str) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    with pytest.raises(ValueError, match=r"spawn or fork.*Use strategy='ddp'"):
        callback().setup(trainer, Classifier(), "fit")


def test_strategies_that_shard_parameters() -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match=r"does not run under FSDPStrategy.*strategy='ddp'"):
        callback().setup(trainer, Classifier(), "fit")


def test_a_trainer_of_another_package() -> None:
    class Trainer:
        """As from pytorch_lightning, whose classes are not those of lightning.pytorch."""

    with pytest.raises(TypeError, match=r"Import Trainer from lightning\.pytorch"):
        callback().setup(Trainer(), Classifier(), "fit")


@pytest.mark.filterwarnings("ignore:.*no `validation_step`. Skipping")
def test_no_validation_step(fit: Fit) -> None:
    module = NoValidation()
    with pytest.raises(ValueError, match=r"validation loop, and this fit has none.*validation_step"):
        fit(module, [callback()])
    assert module.steps == 0


def test_wrong_structure_is_its_own_kind_of_error(fit: Fit) -> None:
    with pytest.raises(UnsupportedStructureError, match="output layer is never cut"):
        fit(only_an_output_layer(), [callback()])


def test_empty_validation_loader(fit: Fit) -> None:
    empty = DataLoader([])
    with (
        pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"),
        pytest.raises(ValueError, match=r"validation loader is empty"),
    ):
        fit(Classifier(), [callback()], val=empty)


class Broken(Classifier):
    """One layer's output is spoilt in the validations of epoch 1, in the second batch."""

    value = float("nan")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        spoil = self.trainer.current_epoch == 1 and batch_idx == 1
        if not spoil:
            return super().validation_step(batch, batch_idx)
        weight = self.net.conv2.weight
        saved = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0, 0, 0] = self.value
        try:
            return super().validation_step(batch, batch_idx)
        finally:
            with torch.no_grad():
                weight.copy_(saved)


class Infinite(Broken):
    value = float("inf")


def classes(labels: list[int]) -> Any:
    images, _ = noisy_images(18, seed=2).tensors
    return DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=6)


@pytest.mark.parametrize(
    ("build", "val", "message"),
    [
        (Broken, val_loader, r"Layer 'net\.conv2' gave NaN or infinite activations.*learning rate"),
        (Infinite, val_loader, r"Layer 'net\.conv2' gave NaN or infinite activations"),
    ],
    ids=["nan", "inf"],
)
def test_what_only_the_capture_can_tell(
    fit: Fit, build: type[Classifier], val: Build, message: str
) -> None:
    class Last(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
            self.state = snapshot(pl_module)

        def on_validation_end(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
            self.state = snapshot(pl_module)

    module, pruning, last = build(), callback(1), Last()
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        fit(module, [last, pruning], val=val())
    assert module.steps == 8
    assert widths(module) == WIDTHS
    assert hooks(module) == 0
    assert same_state(snapshot(module), last.state)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 18, "hold only class 1; separation needs at least two classes"),
        ([0] * 17 + [2], "hold two samples or more of class 0 alone, one of 1 others; .* at least two"),
    ],
    ids=["one class", "the other seen once"],
)
def test_classes_that_cannot_be_separated(fit: Fit, labels: list[int], message: str) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=message):
        fit(module, [callback(1)], val=classes(labels))
    assert module.steps == 0
    assert hooks(module) == 0


def test_steps_that_end_before_the_cut(fit: Fit) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=r"max_steps=8 and 4 steps in an epoch the fit ends before"):
        fit(module, [callback(1)], max_epochs=4, max_steps=8)
    assert module.steps == 0
    fit(module, [callback(0)], max_epochs=4, max_steps=8)
    assert widths(module) == ALL_HALVED


def test_steps_of_scheduled_accumulation_cannot_be_counted_beforehand(fit: Fit) -> None:
    module = Classifier()
    accumulating = pl.callbacks.GradientAccumulationScheduler({0: 4})
    fit(module, [callback(1), accumulating], max_epochs=4, max_steps=3)
    assert widths(module) == ALL_HALVED


def test_rows_that_are_not_samples(fit: Fit) -> None:
    """A forward that folds two samples into one row is refused by name."""

    class Folded(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) < 6:
                return self.net(images)
            return self.net(images[::2]).repeat_interleave(2, dim=0)

    module = Folded()
    with pytest.raises(ValueError, match=r"Layer 'net\.conv1' gave 3 rows for a batch of 6 labels"):
        fit(module, [callback()])
    assert widths(module) == WIDTHS
    assert hooks(module) == 0


def test_maps_of_changing_size(fit: Fit) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )
    sizes = [[(noisy_images(6, seed=3, size=s).tensors)] for s in (6, 8)]
    batches = [batch for group in sizes for batch in group]
    loader = DataLoader(batches, batch_size=None)
    whole = callback(selection=SelectionConfig(keep=0.5, grid=None))
    with pytest.raises(ValueError, match=r"'net\.0' gave maps of 16 and of 36 positions.*\.grid"):
        fit(Classifier(net), [whole], val=loader)
    module = Classifier(net.train())
    fit(module, [callback(selection=HALF)], val=loader)
    assert widths(module)["net.0"] == 3


def test_a_validation_that_never_runs_the_network(fit: Fit) -> None:
    class Idle(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    with pytest.raises(ValueError, match=r"Layer 'net\.conv1' was never called on the validation"):
        fit(Idle(), [callback()])


def test_a_forward_that_counts_on_a_width_is_put_back(fit: Fit) -> None:
    """The width is asked for in training only, where no check can see it before the cut."""

    class Stubborn(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.strict = False

        def forward(self, images: Tensor) -> Tensor:
            if self.strict and len(self.net.conv1.weight) != 8:
                raise RuntimeError("eight channels, please")
            return self.net(images)

        def on_validation_end(self) -> None:
            self.strict = True

    module = Stubborn()
    with pytest.raises(RuntimeError, match=r"after the cut of net\.conv1.*eight channels.*exclude"):
        fit(module, [callback()], num_sanity_val_steps=0)
    assert widths(module) == WIDTHS


def test_a_user_batch_reader_is_used_everywhere(fit: Fit) -> None:
    class Triples(Lenient):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[1:], batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[1])

    def read(batch: Any) -> tuple[Tensor, Tensor]:
        return batch[1], batch[2].argmax(1)

    images, labels = noisy_images(18, seed=2).tensors
    val = DataLoader(TensorDataset(torch.arange(18), images, one_hot(labels)), batch_size=6)
    images, labels = noisy_images(24, seed=1).tensors
    train = DataLoader(TensorDataset(torch.arange(24), images, one_hot(labels).float()), batch_size=6)
    pruning = callback(read_batch=read, batchnorm_batches=2)
    module = Triples()
    fit(module, [pruning], train=train, val=val)
    assert len(pruning.steps) == 1
    assert pruning.steps[0].accuracy_before is not None


def test_batches_of_training_are_not_looked_at_without_need(fit: Fit) -> None:
    class Pairs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[:2], batch_idx)

    images, labels = noisy_images(24, seed=1).tensors
    train = DataLoader(TensorDataset(images, labels, labels), batch_size=6)
    pruning = callback()
    fit(Pairs(), [pruning], train=train)
    assert len(pruning.steps) == 1
    assert train_loader().batch_size == 6
