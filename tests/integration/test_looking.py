"""Looking at a network leaves it as it is, whatever its forward writes to."""

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.fits import (
    HALF,
    WIDTHS,
    Classifier,
    Fit,
    Scripted,
    callback,
    conv_net,
    only_whole,
    same_state,
    snapshot,
    val_loader,
    widths,
)
from torch import Tensor, nn

from acsp_lightning import (
    Guard,
    SelectionConfig,
    UnsupportedStructureError,
    compare_latency,
    measure_complexity,
    measure_latency,
    preview,
)
from acsp_lightning.structure import verification


class Logging(Classifier):
    """Logs in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        if self.training:
            return scores
        self.log("seen", scores.new_tensor(float(len(x))), batch_size=1, on_epoch=True, on_step=False)
        return scores


def test_what_forward_logs_while_the_network_is_looked_at_is_not_logged(fit: Fit) -> None:
    """By default groups are cut one by one, on the network itself, to see what the scores feel."""
    module = Logging()
    trainer = fit(module, [callback(selection=SelectionConfig(flops=0.6))], max_epochs=2)
    sizes = {len(images) for images, _ in val_loader()}
    assert sizes == {int(trainer.callback_metrics["seen"])}


class Writer(nn.Module):
    """Passes its input on, and writes something down meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.largest: Tensor | None = None
        self.calls = 0


class InPlace(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.copy_(torch.maximum(self.seen, x.detach().abs().amax()))
        return x.clamp(max=self.seen)


class Rebound(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.maximum(self.seen, x.detach().abs().amax())
        return x.clamp(max=self.seen)


class Attributes(Writer):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.largest = x.detach().amax()
        self.fresh = x.shape  # an attribute that was not there before
        return x


class NonPersistent(Writer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls_seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls_seen.add_(1)
        return x


KINDS = pytest.mark.parametrize("kind", [InPlace, Rebound, Attributes, NonPersistent])


def with_middle(middle: nn.Module) -> nn.Sequential:
    """The network of these tests with a module after its first ReLU."""
    layers = list(conv_net().named_children())
    return nn.Sequential(OrderedDict([*layers[:3], ("middle", middle), *layers[3:]]))


def network(middle: nn.Module) -> nn.Sequential:
    net = with_middle(middle)
    net(next(iter(val_loader()))[0])  # it has seen data before
    return net


def state_of(module: nn.Module) -> tuple[dict[str, Tensor], list[int], list[dict[str, Any]]]:
    plain = [
        {k: v for k, v in vars(m).items() if not k.startswith("_") and not isinstance(v, Tensor)}
        for m in module.modules()
    ]
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    return buffers, [id(buffer) for buffer in module.buffers()], plain


INPUTS = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(3))
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "preview": lambda m: preview(m, val_loader(), HALF),
    "preview with times": lambda m: preview(m, val_loader(), HALF, latency_batch_sizes=[1]),
    "complexity": lambda m: measure_complexity(m, 100 * INPUTS[:1]),
    "latency": lambda m: measure_latency(m, 100 * INPUTS, [1], min_runs=1, min_seconds=0),
    "two latencies": lambda m: compare_latency(m, m, 100 * INPUTS, [1], min_runs=1, min_seconds=0),
}


@KINDS
@pytest.mark.parametrize("look", LOOKS)
def test_buffers_and_attributes_are_what_they_were(kind: Any, look: str) -> None:
    module = network(kind())
    buffers, identities, attributes = state_of(module)
    LOOKS[look](module)
    found, same, plain = state_of(module)
    assert same == identities
    assert same_state(found, buffers)
    assert plain == attributes


@KINDS
def test_a_fit_with_the_callback_trains_as_one_without_until_the_cut(fit: Fit, kind: Any) -> None:
    class Diary(pl.Callback):
        def __init__(self) -> None:
            self.pages: list[dict[str, Tensor]] = []

        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            if trainer.current_epoch < 2:
                self.pages.append(snapshot(module))

    diaries = Diary(), Diary()
    fit(Classifier(network(kind())), [diaries[0]])
    fit(Classifier(network(kind())), [callback(1), diaries[1]])
    assert len(diaries[0].pages) == len(diaries[1].pages) > 0
    for alone, looked_at in zip(diaries[0].pages, diaries[1].pages, strict=True):
        assert same_state(alone, looked_at)


# -- what only training does, and what only evaluation does --------------------------------------------


class Tracked(nn.Module):
    """Tracks a mean of every channel in training; nothing reads it in evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.means.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x


class Gated(nn.Module):
    """Multiplies by a fixed mask of the channels in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


class Reshaped(nn.Module):
    """Counts on the width of its input in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 8, *x.shape[2:]) if self.training else x


@pytest.mark.parametrize("kind", [lambda: Tracked(8), lambda: Gated(8), Reshaped])
def test_what_breaks_in_training_alone_is_left_whole_by_name(fit: Fit, kind: Any) -> None:
    module = Classifier(with_middle(kind()))
    with pytest.warns(UserWarning, match=r"left whole.*'net\.conv1'"):
        fit(module, [callback(0)])
    assert widths(module)["net.conv1"] == 8
    assert widths(module)["net.fc1"] == 5
    assert module.steps == 12  # all of them


class TwoPaths(Classifier):
    """Evaluates with an average, its own submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.average = conv_net().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) if self.training else self.average(images)


def test_a_network_that_is_evaluated_and_never_trained_is_refused(fit: Fit) -> None:
    module = TwoPaths()
    with pytest.raises(UnsupportedStructureError, match=r"'average\.conv1' in evaluation and never in"):
        fit(module, [callback(0)])
    assert module.steps == 0


class Dropped(nn.Module):
    """Skips a layer at random in training (LayerDrop)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.layer, self.draw = nn.Conv2d(8, 8, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.draw() < 0.5 else self.layer(x).relu()


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
@pytest.mark.parametrize("seed", range(5))
def test_a_layer_that_training_skips_at_random_is_none_that_never_trains(
    seed: int, draw: Callable[[], float]
) -> None:
    torch.manual_seed(0)
    net = with_middle(Dropped(draw))
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    step = preview(net, val_loader(), HALF)
    assert step.layers["fc1"] == (10, 5)
    assert step.layers["middle.layer"] == (8, 4)


# -- once a fit, unless the network has changed ---------------------------------------------------------


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The widths of the network every time that it is traced."""
    found: list[dict[str, int]] = []
    trace = verification.trace_groups

    def counting(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        found.append(widths(model))
        return trace(model, *arguments, **options)

    monkeypatch.setattr(verification, "trace_groups", counting)
    return found


def test_a_network_that_trains_is_traced_once(fit: Fit, traces: list[dict[str, int]]) -> None:
    """Its steps and losses, which training_step writes down, say nothing about forward."""
    pruning = callback(1)
    module = Classifier()
    fit(module, [pruning], max_epochs=4, val_check_interval=0.5)
    assert module.steps > 0
    assert len(traces) == len(pruning.steps) == 1


def test_a_network_that_was_cut_is_traced_again(fit: Fit, traces: list[dict[str, int]]) -> None:
    module, pruning = Classifier(), callback(0, 2)
    fit(module, [pruning], max_epochs=5)
    assert len(pruning.steps) == 2
    assert len(traces) == 2
    assert traces[0] != traces[1]


def test_a_network_that_was_rolled_back_is_the_one_that_was_traced(
    fit: Fit, traces: list[dict[str, int]]
) -> None:
    guard = Guard(max_drop=0.1, monitor="quality")
    pruning = callback(1, 4, guard=guard)
    fit(Scripted(only_whole), [pruning], max_epochs=8)
    assert any(step.rolled_back for step in pruning.steps)
    assert traces == [WIDTHS]


class Meddler(pl.Callback):
    """Changes the network in the second epoch."""

    def __init__(self, change: Callable[[nn.Module], object]) -> None:
        self.change = change

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            self.change(pl_module)


def mix(module: Any) -> None:
    """Its channels are no longer those of the convolution."""
    module.net.relu1 = nn.Sequential(nn.ReLU(), nn.Softmax(1))


def mix_by_method(module: Any) -> None:
    module.net.relu1.forward = lambda x: x.softmax(1)


def mix_by_attribute(module: Any) -> None:
    module.net.bn1.mixed = True


class Mixing(nn.BatchNorm2d):
    mixed: bool = False

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.softmax(1) if self.mixed else x


@pytest.mark.parametrize("change", [mix, mix_by_method, mix_by_attribute])
def test_what_users_change_is_seen(
    fit: Fit, traces: list[dict[str, int]], change: Callable[[nn.Module], object]
) -> None:
    module, pruning = Classifier(), callback(1)
    module.net.bn1 = Mixing(8)
    module.net.bn1.mixed = False
    fit(module, [pruning, Meddler(change)], max_epochs=3)
    assert len(traces) == 2
    (step,) = pruning.steps
    assert "net.conv1" in step.left_whole
    assert widths(module)["net.conv1"] == 8
