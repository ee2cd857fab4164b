"""The uncut network teaches the cut one as a loss written by hand would have it, to the bit."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from helpers.compiled import COMPILE, Backend
from helpers.fits import (
    WIDTHS,
    Fit,
    Probe,
    callback,
    conv_net,
    hooks,
    only_whole,
    ordered,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from helpers.lessons import HandTaught, Pupil
from helpers.outputs import second
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from acsp_lightning import Distillation, Guard
from acsp_lightning.trainer.averages import evaluated_copy


def adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


def half() -> list[MixedPrecision]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


# Options of both modules, of the teaching, and of the Trainer.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float], Callable[[], dict[str, Any]]]] = {
    "plain": ({}, {}, dict),
    "other numbers": ({}, {"weight": 0.5, "temperature": 2.0}, dict),
    "the teacher alone": ({}, {"weight": 1.0}, dict),
    "adam": ({"configure": adam}, {}, dict),
    "accumulation": ({}, {}, partial(dict, accumulate_grad_batches=2)),
    "clipping": ({}, {}, partial(dict, gradient_clip_val=0.1)),
    "manual": ({"manual": True}, {}, dict),
    "bf16": ({}, {}, partial(dict, precision="bf16-mixed")),
    "bf16, manual": ({"manual": True}, {}, partial(dict, precision="bf16-mixed")),
    "fp16": ({}, {}, lambda: {"plugins": half()}),
    "fp16, accumulation, clipping": (
        {},
        {},
        lambda: {"plugins": half(), "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    ),
    "fp16, manual": ({"manual": True}, {}, lambda: {"plugins": half()}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_those_of_a_loss_written_by_hand(fit: Fit, variant: str) -> None:
    options, numbers, trainer = VARIANTS[variant]

    def run(module: Pupil, **pruning: Any) -> Pupil:
        fit(module, [callback(**pruning)], **trainer())
        return module

    expected = run(HandTaught(conv_net(dropout=0.2), **options, **numbers))
    found = run(Pupil(conv_net(dropout=0.2), **options), distillation=Distillation(**numbers))
    alone = run(Pupil(conv_net(dropout=0.2), **options))
    assert same_state(snapshot(found), snapshot(expected))
    assert not same_state(snapshot(found), snapshot(alone))
    assert found.logged == expected.logged, "the user's own loss is logged"
    assert found.taught == expected.taught
    assert found.taught[:4] == [0.0] * 4
    assert all(distance > 0 for distance in found.taught[4:])


@pytest.mark.parametrize("averaging", [None, "swa first", "swa last", "ema first", "ema last"])
def test_the_first_network_teaches_through_several_cuts(fit: Fit, averaging: str | None) -> None:
    """Where validation sees averaged weights, as these do, checkpoints have them first too."""
    averages: list[Any] = []

    class OfAverage(HandTaught):
        def teacher_now(self) -> nn.Module:
            return copy.deepcopy(averages[-1]._average_model.module.net)

    def run(module: Pupil, **pruning: Any) -> Pupil:
        cuts: pl.Callback = callback(0, 2, **pruning)
        if averaging is None:
            fit(module, [cuts], max_epochs=5)
            return module
        kind, place = averaging.split()
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=3)
        averages.append(EMAWeightAveraging(decay=0.7) if kind == "ema" else swa)
        fit(module, ordered(cuts, averages[-1], place == "last"), max_epochs=5)
        return module

    by_hand = OfAverage if averaging is not None and "ema" in averaging else HandTaught
    found, expected = run(Pupil(), distillation=Distillation()), run(by_hand())
    assert same_state(snapshot(found), snapshot(expected))
    steps = 5 * 4  # in one more epoch SWA estimates BatchNorm, without a backward pass
    assert found.taught[:steps] == expected.taught[:steps]
    assert all(distance > 0 for distance in found.taught[4:steps])


def test_a_network_that_is_back_is_taught_by_the_first_one(fit: Fit) -> None:
    """Rolled back, cut again at half the depth, and rolled back for good."""

    class Judged(HandTaught):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            self.log("quality", only_whole(len(self.net.conv1.weight)))

    class JudgedPupil(Pupil):
        validation_step = Judged.validation_step

    guard = Guard(0.1, "quality")
    expected, found = Judged(), JudgedPupil()
    fit(expected, [callback(guard=guard)], max_epochs=5)
    pruning = callback(guard=guard, distillation=Distillation())
    fit(found, [pruning], max_epochs=5)
    assert [step.rolled_back for step in pruning.steps] == [True, True]
    assert widths(found) == WIDTHS
    assert same_state(snapshot(found), snapshot(expected))
    assert found.taught == expected.taught
    assert all(distance > 0 for distance in found.taught[4:])


# -- what the network returns, and how it is called ----------------------------------------------------


@dataclass
class Prediction:
    features: Tensor
    logits: Tensor


class Dicts(Pupil):
    def forward(self, images: Any) -> Any:
        return {"features": images.flatten(1), "logits": self.net(images)}

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self(images)["logits"])


class Records(Pupil):
    def forward(self, images: Any) -> Any:
        return Prediction(images.flatten(1), self.net(images))

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self(images).logits)


class Pairs(Pupil):
    def forward(self, images: Any) -> Any:
        return images.flatten(1), self.net(images)

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self(images)[1])


class PastForward(Pairs):
    """Forward returns pairs, and training_step calls the network in it, whose outputs are no pairs."""

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(images))


class ByName(Pupil):
    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self(images=images))


class Overwriting(Pupil):
    """Its forward writes to its inputs; twice, they would be others."""

    def forward(self, images: Any) -> Any:
        return self.net(images.mul_(0.5))


class OverwritingByHand(HandTaught):
    def forward(self, images: Any) -> Any:
        return self.net(images * 0.5)

    def loss(self, own: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        return super().loss(own, logits, images * 0.5)


class Looking(Pupil):
    """Runs the network on other images as well, without gradients or before those that count."""

    def predict(self, images: Tensor) -> Tensor:
        if self.training:
            torch.autograd.grad(self(images + 1).sum(), list(self.net.parameters()))
        logits: Tensor = self(images)
        with torch.no_grad():
            self(images - 1)
        return logits


class LookingByHand(HandTaught):
    predict = Looking.predict


class Weighted(Pupil):
    """Its root owns tensors, and its steps call the part that has the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", torch.ones(3))
        self.margin = nn.Parameter(torch.zeros(()))

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(images))


class WeightedByHand(Weighted, HandTaught): ...


class Gained(nn.Module):
    """A network that owns a parameter itself, which acts before its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: Any) -> Any:
        return self.body(images * self.gain)


class OwnGain(Pupil):
    def __init__(self, **options: Any) -> None:
        super().__init__(Gained(), **options)

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(images))


class OwnGainByHand(OwnGain, HandTaught): ...


class AsksTheTrainer(Pupil):
    def forward(self, images: Any) -> Any:
        return self.net(images) * (1 + self.trainer.current_epoch / self.trainer.max_epochs)


class AsksTheTrainerByHand(HandTaught):
    def forward(self, images: Any) -> Any:
        return self.net(images) * self.factor()

    def factor(self) -> float:
        return 1 + self.trainer.current_epoch / self.trainer.max_epochs

    def teacher_now(self) -> Any:
        module, net = self, copy.deepcopy(self.net)

        class Factored(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, images: Tensor) -> Any:
                return self.net(images) * module.factor()

        return Factored()


class KeepsItsLoss(Pupil):
    """As an attribute, with its history, which PyTorch does not copy."""

    def loss(self, own: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        self.last = {"loss": own}
        return own


CALLED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "a dict": (Dicts, HandTaught, {}),
    "a dataclass": (Records, HandTaught, {}),
    "a reader": (Pairs, HandTaught, {"read_outputs": second}),
    "not forward": (PastForward, HandTaught, {"read_outputs": second}),
    "by name": (ByName, HandTaught, {}),
    "inputs are overwritten": (Overwriting, OverwritingByHand, {}),
    "several calls": (Looking, LookingByHand, {}),
    "tensors of the root": (Weighted, WeightedByHand, {}),
    "a parameter of its own": (OwnGain, OwnGainByHand, {}),
    "the trainer is asked": (AsksTheTrainer, AsksTheTrainerByHand, {}),
    "a loss is kept": (KeepsItsLoss, HandTaught, {}),
}


@pytest.mark.parametrize("kind", CALLED)
def test_class_scores_are_found_wherever_they_are(fit: Fit, kind: str) -> None:
    pupil, by_hand, options = CALLED[kind]
    expected, found = by_hand(), pupil()
    fit(expected, [callback()])
    fit(found, [callback(distillation=Distillation(), **options)])
    assert same_state(snapshot(found), snapshot(expected))
    assert found.taught == expected.taught
    assert all(distance > 0 for distance in found.taught[4:])


# -- who sees the teacher ------------------------------------------------------------------------------


class Witness(pl.Callback):
    """What the module and the Trainer look like in the middle of a training step, and after it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.hooks: list[int] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(
            {
                "state": list(pl_module.state_dict()),
                "modules": [name for name, _ in pl_module.named_modules()],
                "parameters": [name for name, _ in pl_module.named_parameters()],
                "attributes": sorted(vars(pl_module)),
                "training": all(module.training for module in pl_module.modules()),
                "optimized": [len(g["params"]) for o in trainer.optimizers for g in o.param_groups],
            }
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.hooks.append(hooks(pl_module))
        pickle.dumps(pl_module.net)


@pytest.mark.parametrize("manual", [False, True])
def test_nobody_sees_the_teacher(fit: Fit, manual: bool) -> None:
    taught, alone = Witness(), Witness()
    fit(Pupil(manual=manual), [callback(distillation=Distillation()), taught])
    fit(Pupil(manual=manual), [callback(), alone])
    assert taught.seen == alone.seen
    assert taught.hooks == [0] * len(taught.hooks)
    assert len(taught.hooks) == 3 * 4


def test_the_teacher_is_frozen_and_let_go(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers: list[nn.Module] = []

    def evaluated(trainer: pl.Trainer) -> nn.Module:
        teachers.append(evaluated_copy(trainer))
        return teachers[-1]

    monkeypatch.setattr("acsp_lightning.trainer.distillation.evaluated_copy", evaluated)
    probe, pruning = Probe(), callback(0, 1, distillation=Distillation())
    fit(Pupil(), [probe, pruning], max_epochs=4)
    (teacher,) = teachers
    # From before the first cut, with the BatchNorm statistics of then.
    assert same_state(snapshot(teacher), probe.states["train_epoch_start", 1])
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    kept = weakref.ref(teacher)
    teachers.clear()
    del teacher
    gc.collect()
    assert kept() is None


def test_no_teacher_without_a_step_of_training(make_trainer: Fit, fit: Fit) -> None:
    """Neither in fast_dev_run, nor in validation and test, nor before the first cut."""
    module = Pupil()
    pruning = callback(distillation=Distillation())
    fit(module, [pruning], fast_dev_run=True)
    assert module.taught == [0.0]
    trainer = make_trainer(pruning)
    trainer.fit(module, train_loader(), val_loader())
    before = snapshot(module)
    for work in (trainer.validate, trainer.test):
        work(module, val_loader(), verbose=False)
        assert "acsp/distillation_loss" not in trainer.callback_metrics
    assert same_state(snapshot(module), before)


def test_a_backward_of_the_users_own_gets_the_blended_loss(fit: Fit) -> None:
    class Own(Pupil):
        def backward(self, loss: Tensor, *arguments: Any, **keywords: Any) -> None:
            self.given.append(loss.item())
            super().backward(loss, *arguments, **keywords)

    found = Own()
    found.given = []
    fit(found, [callback(distillation=Distillation(weight=0.5))])
    blended = [0.5 * own + 0.5 * far for own, far in zip(found.logged, found.taught, strict=True)]
    assert found.given[4:] == pytest.approx(blended[4:])
    assert found.given[:4] == found.logged[:4]


@pytest.mark.parametrize("compiled", COMPILE)
@pytest.mark.parametrize("direct", [False, True])
def test_a_compiled_network_is_taught(fit: Fit, compiled: Any, direct: bool) -> None:
    class Quiet(Pupil):
        """Its steps neither log nor draw numbers, which dynamo would trace with warnings."""

        def predict(self, images: Tensor) -> Tensor:
            return cast(Tensor, self.net(images) if direct else self(images))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.predict(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    def run(module: Quiet, prepared: Any) -> Quiet:
        torch.compiler.reset()
        fit(prepared, [callback(0, 1, distillation=Distillation())], max_epochs=4)
        return module

    eager, module, backend = Quiet(), Quiet(), Backend()
    run(eager, eager)
    run(module, compiled(module, backend))
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in snapshot(module).items()}
    for name, tensor in snapshot(eager).items():
        torch.testing.assert_close(state[name], tensor, msg=name)
    assert module.taught == pytest.approx(eager.taught)
    assert all(distance > 0 for distance in eager.taught[4:])
    assert backend.runs > 3 * 4
