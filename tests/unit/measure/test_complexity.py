import copy
import dataclasses
import logging
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from helpers.outputs import ModelOutput, Scored
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.serialization import decode, encode
from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 2),
    )


class FromDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.linear(batch["x"])
        return result


class Failing(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        raise RuntimeError("out of luck")


class Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand_like(images)


def test_hand_counts() -> None:
    found = measure_complexity(small_network(), torch.rand(1, 3, 8, 8))
    # Convolution: 6x6 outputs of 4 channels, 3x3x3 products each. BatchNorm: 2 per element.
    assert found.by_layer == {
        "0": 6 * 6 * 4 * 27,
        "1": 2 * 4 * 6 * 6,
        "4": 4 * 3 * 3,
        "7": 4 * 2,
    }
    assert found.flops == sum(found.by_layer.values())
    assert found.parameters == (27 * 4 + 4) + (4 + 4) + (4 * 2 + 2)
    assert found.unsupported == {"aten::max_pool2d": 1}


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 5), 5 * 5 * 8 * 9),
        (nn.Conv2d(4, 6, 1, stride=2, bias=False), (1, 4, 8, 8), 4 * 4 * 6 * 4),
        (nn.BatchNorm1d(4, affine=False), (3, 4), 3 * 4),
        (nn.ReLU(), (1, 4), 0),
    ],
)
def test_a_single_layer(layer: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    found = measure_complexity(layer, torch.rand(shape))
    assert found.flops == flops
    assert found.by_layer == ({"": flops} if flops else {})


def test_counts_are_for_the_whole_batch() -> None:
    one, five = (measure_complexity(small_network(), torch.rand(b, 3, 8, 8)) for b in (1, 5))
    assert five.flops == 5 * one.flops
    assert five.parameters == one.parameters


def test_a_shared_layer_has_its_parameters_once_and_every_call() -> None:
    layer = nn.Linear(3, 3)
    found = measure_complexity(nn.Sequential(layer, layer), torch.rand(1, 3))
    assert found.parameters == 12
    assert found.by_layer == {"0": 18}


def test_a_dict_is_one_argument_and_a_tuple_is_many() -> None:
    assert measure_complexity(FromDict(), {"x": torch.rand(1, 4)}).flops == 8
    assert measure_complexity(FromDict(), ({"x": torch.rand(1, 4)},)).flops == 8
    bilinear = measure_complexity(nn.Bilinear(2, 3, 4), (torch.rand(1, 2), torch.rand(1, 3)))
    assert bilinear.unsupported == {"aten::bilinear": 1}


def test_a_lightning_module_counts_as_its_network() -> None:
    network = VGG([[4], [8]], in_channels=1)
    images = torch.rand(2, 1, 8, 8)
    bare = measure_complexity(network, images)
    module = measure_complexity(ImageClassifier(network), images)
    assert (module.flops, module.parameters) == (bare.flops, bare.parameters)
    assert module.by_layer == {f"network.{name}": count for name, count in bare.by_layer.items()}


class MeasureEveryEpoch(pl.Callback):
    def __init__(self) -> None:
        self.flops: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert pl_module.training
        self.flops.append(measure_complexity(pl_module, torch.ones(1, 1, 8, 8)).flops)
        assert all(module.training for module in pl_module.modules())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
def test_measuring_inside_a_fit_changes_nothing() -> None:
    def fit(callbacks: list[pl.Callback]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        pl.seed_everything(0, verbose=False)
        module = ImageClassifier(nn.Sequential(nn.Dropout(0.2), VGG([[4], [8]], in_channels=1)))
        trainer = pl.Trainer(
            max_epochs=2,
            limit_train_batches=3,
            limit_val_batches=1,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=DigitsDataModule())
        return module.state_dict(), trainer.callback_metrics

    measure = MeasureEveryEpoch()
    weights, metrics = fit([measure])
    untouched_weights, untouched_metrics = fit([])
    assert len(measure.flops) == 2
    assert measure.flops[0] > 0
    assert metrics == untouched_metrics
    for name, value in untouched_weights.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("kind", [nn.Sequential, Failing])
def test_the_model_and_the_world_stay_as_they_were(kind: type[nn.Sequential]) -> None:
    model = kind(*small_network(), Noisy())
    model[1].eval()
    model[0].weight.requires_grad_(False)
    seen: list[bool] = []
    model[2].register_forward_hook(lambda layer, inputs, output: seen.append(layer.training))
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if kind is Failing:
            with pytest.raises(ValueError, match="out of luck"):
                measure_complexity(model, torch.rand(2, 3, 8, 8, generator=torch.Generator()))
        else:
            measure_complexity(model, torch.rand(2, 3, 8, 8, generator=torch.Generator()))
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert seen == ([False, False] if kind is Failing else [False, False, True])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for module in model.modules():
        assert len(module._forward_hooks) == (module is model[2])
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_grad_mode_will_do(mode: type[torch.no_grad]) -> None:
    with mode():
        assert measure_complexity(nn.Linear(3, 2), torch.rand(1, 3)).flops == 6


def test_unsupported_operators_and_unused_layers_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = FromDict()
    model.unused = nn.Linear(2, 2)
    with caplog.at_level(logging.DEBUG):
        measure_complexity(model, {"x": torch.rand(1, 4)})
        measure_complexity(small_network(), torch.rand(1, 3, 8, 8))
    assert not caplog.records


def test_a_failing_forward_names_the_inputs_and_the_cause() -> None:
    expected = r"forward pass.*\(torch.float32 \(1, 5\) on cpu\).*RuntimeError.*runs by itself"
    with pytest.raises(ValueError, match=expected) as caught:
        measure_complexity(nn.Linear(3, 2), torch.rand(1, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="found list"):
        measure_complexity(nn.Linear(3, 2), [torch.rand(1, 3)])  # type: ignore[arg-type]


def test_results_are_frozen_and_can_travel() -> None:
    found = measure_complexity(small_network(), torch.rand(1, 3, 8, 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.flops = 0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)) == found
    assert copy.deepcopy(found) == found


class SameConv2d(nn.Conv2d):
    """Pads by a layer of its own, as ports of EfficientNet do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        self.static_padding = nn.ZeroPad2d(1)

    def forward(self, images: Tensor) -> Tensor:
        padded = self.static_padding(images)
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


class Adapted(nn.Linear):
    """A linear layer with a branch of low rank."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + self.up(self.down(x))
        return out


class NormAct(nn.BatchNorm2d):
    """A norm that holds its activation, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.act(super().forward(images))
        return out


class Attention(nn.Module):
    """Multiplies what its children give."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.queries(x) @ self.keys(x).mT


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (
            nn.Sequential(SameConv2d(1, 8), nn.ReLU(), SameConv2d(8, 12)),
            torch.rand(1, 1, 8, 8),
            {"0": 64 * 9 * 8, "2": 64 * 9 * 8 * 12},
        ),
        (SameConv2d(2, 3), torch.rand(1, 2, 4, 4), {"": 16 * 9 * 2 * 3}),
        (
            nn.Sequential(Adapted()),
            torch.rand(1, 6),
            {"0": 6 * 5, "0.down": 6 * 2, "0.up": 2 * 5},
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 1), NormAct(4)),
            torch.rand(1, 1, 5, 5),
            {"0": 25 * 4, "1": 2 * 25 * 4},
        ),
        (
            nn.Sequential(Attention()),
            torch.rand(1, 3, 6),
            {"0": 3 * 3 * 4, "0.queries": 3 * 6 * 4, "0.keys": 3 * 6 * 4},
        ),
        (Attention(), torch.rand(1, 3, 6), {"": 36, "queries": 72, "keys": 72}),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))),
            torch.rand(1, 6),
            {"0": 6 * 5},
        ),
    ],
)
def test_flops_stand_under_the_module_that_runs_them(
    model: nn.Module, x: Tensor, expected: dict[str, int]
) -> None:
    found = measure_complexity(model, x)
    assert dict(found.by_layer) == expected
    assert sum(found.by_layer.values()) == found.flops


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.vit_b_16])
def test_flops_of_the_modules_are_those_of_the_network(build: Any) -> None:
    found = measure_complexity(build(weights=None), torch.rand(1, 3, 224, 224))
    assert sum(found.by_layer.values()) == found.flops
    assert found.unused == {}


class WithTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.teacher = small_network(), small_network()
        self.loss = nn.Linear(2, 9, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(images)
        return out


def test_parameters_are_those_that_forward_uses() -> None:
    found = measure_complexity(WithTeacher(), torch.rand(1, 3, 8, 8))
    alone = measure_complexity(small_network(), torch.rand(1, 3, 8, 8))
    assert found.parameters == alone.parameters == 3 * 4 * 9 + 4 + 8 + 4 * 2 + 2
    assert found.unused == {"teacher": alone.parameters, "loss": 18}
    assert alone.unused == {}


@pytest.mark.parametrize("kind", [ModelOutput, dict, Scored])
def test_outputs_of_any_kind(kind: Any) -> None:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network()

        def forward(self, images: Tensor) -> Any:
            return kind(logits=self.network(images))

    found = measure_complexity(Wrapping(), torch.rand(1, 3, 8, 8))
    assert found.flops == measure_complexity(small_network(), torch.rand(1, 3, 8, 8)).flops


class Checkpointed(nn.Module):
    """Runs its body in activation checkpointing, in every mode."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        x = checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)
        return self.head(x.relu())


def test_checkpointing_is_named_where_it_stops_the_count() -> None:
    expected = {"stem": 36, "body": 36, "head": 12}
    assert measure_complexity(Checkpointed(False), torch.rand(1, 6)).by_layer == expected
    with pytest.raises(ValueError, match=r"activation checkpointing .*pass use_reentrant=False"):
        measure_complexity(Checkpointed(True), torch.rand(1, 6))
    assert "apply" not in vars(CheckpointFunction)


def test_records_without_the_unused_parameters_can_be_read() -> None:
    found = measure_complexity(WithTeacher(), torch.rand(1, 3, 8, 8))
    record = encode(found)
    assert decode(Complexity, record) == found
    del record["unused"]
    assert decode(Complexity, record) == dataclasses.replace(found, unused={})
