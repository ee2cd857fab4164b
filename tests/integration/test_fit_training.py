"""Training goes on as if nothing had happened, but for the shapes: compared with a run without cuts."""

import random
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    Classifier,
    Fit,
    Probe,
    callback,
    conv_net,
    noisy_images,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import SelectionConfig

KEEP_ALL = SelectionConfig(keep=1.0)


class Rates(pl.Callback):
    """The optimizer, its learning rates and its state, after every batch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.momenta: list[list[float | None]] = []
        self.optimizers: set[int] = set()
        self.adam_steps: list[set[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        owned = {id(p) for p in pl_module.parameters()}
        for optimizer in trainer.optimizers:
            self.optimizers.add(id(optimizer))
            held = [p for group in optimizer.param_groups for p in group["params"]]
            assert {id(p) for p in held} <= owned, "the optimizer holds a parameter of the past"
            assert {id(p) for p in optimizer.state} <= owned
            for parameter, state in optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.numel() > 1:
                        assert value.shape == parameter.shape
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.rates.append([group["lr"] for group in groups])
        self.momenta.append([group.get("momentum") for group in groups])
        steps = {
            float(state["step"])
            for optimizer in trainer.optimizers
            for state in optimizer.state.values()
            if "step" in state
        }
        self.adam_steps.append(steps)


def step_lr(module: nn.Module) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
    return [optimizer], [schedulers.StepLR(optimizer, 1, gamma=0.7)]


def one_cycle(module: nn.Module) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=16)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Climbing(Classifier):
    """Logs a value that never falls, so that a plateau scheduler acts on the epoch count alone."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])
        self.log("climb", float(self.current_epoch))


def plateau(module: nn.Module) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1)
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "climb"}}


def adamw_two_groups(module: Any) -> Optimizer:
    biases = [p for n, p in module.named_parameters() if n.endswith("bias")]
    weights = [p for n, p in module.named_parameters() if not n.endswith("bias")]
    return AdamW([{"params": weights, "lr": 0.01}, {"params": biases, "weight_decay": 0.0}], lr=0.02)


@pytest.mark.parametrize("configure", [step_lr, one_cycle, plateau, adamw_two_groups])
def test_learning_rates_are_those_of_a_run_without_cuts(fit: Fit, configure: Callable[..., Any]) -> None:
    plain, pruned = Rates(), Rates()
    fit(Climbing(configure=configure), [plain], max_epochs=4)
    module = Climbing(configure=configure)
    fit(module, [callback(0, 1, reset_monitors=False), pruned], max_epochs=4)
    assert widths(module)["net.conv1"] == 2
    assert pruned.rates == plain.rates
    assert pruned.momenta == plain.momenta
    assert len(pruned.rates) == 16
    assert len({tuple(rate) for rate in plain.rates}) > 1 or configure is adamw_two_groups
    assert len(pruned.optimizers) == 1
    assert pruned.adam_steps == plain.adam_steps


def test_adam_counts_on_and_its_moments_are_sliced(fit: Fit) -> None:
    class Around(pl.Callback):
        def note(self, trainer: pl.Trainer) -> dict[str, Tensor]:
            (optimizer,) = trainer.optimizers
            weight = trainer.lightning_module.net.conv2.weight
            return {key: value.clone() for key, value in optimizer.state[weight].items()}

        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking and trainer.current_epoch == 0:
                self.before = self.note(trainer)

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.after = self.note(trainer)

    module = Classifier(configure=lambda m: Adam(m.parameters(), lr=0.01, amsgrad=True))
    around, pruning, rates = Around(), callback(), Rates()
    fit(module, [pruning, around, rates])
    rows = list(pruning.steps[0].plan.kept("net.conv2", "out"))
    columns = list(pruning.steps[0].plan.kept("net.conv2", "in"))
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert torch.equal(around.after[key], around.before[key][rows][:, columns])
    assert around.after["step"] == around.before["step"] == 4
    assert rates.adam_steps[-1] == {12.0}


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*shuffling enabled")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("epochs", [(0,), (0, 1, 2)])
def test_a_cut_that_removes_nothing_changes_no_bit(
    fit: Fit, epochs: tuple[int, ...], workers: int
) -> None:
    """Shuffling, dropout and shuffled validation draw the same numbers as without the callback."""

    def run(*pruning: pl.Callback) -> Classifier:
        module = Classifier(conv_net(dropout=0.5), lambda m: Adam(m.parameters(), lr=0.01))
        options = {"num_workers": workers, "persistent_workers": True} if workers else {}
        fit(
            module,
            pruning,
            train=train_loader(**options),
            val=val_loader(shuffle=True, **options),
            max_epochs=4,
        )
        return module

    plain = run()
    for recovery in ("least_squares", "none"):
        # Recalibration must not run either, since nothing was cut.
        pruning = callback(*epochs, selection=KEEP_ALL, recovery=recovery, batchnorm_batches=2)
        found = run(pruning)
        assert len(pruning.steps) == len(epochs)
        assert found.losses == plain.losses
        assert same_state(snapshot(found), snapshot(plain))
        if workers:
            break


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_cut_disturbs_no_random_number_and_no_data_order(fit: Fit, own_generator: bool) -> None:
    """With a real cut the weights differ, but batches and torch's, numpy's and python's draws agree."""

    class Drawing(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            np.random.rand()
            random.random()
            torch.rand(())
            return super().__getitem__(index)

    train, val = (Drawing(*noisy_images(n, seed=n).tensors) for n in (24, 18))

    class Recorder(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            draws = (torch.rand(()).item(), float(np.random.rand()), random.random())
            self.seen = [*getattr(self, "seen", []), (batch[0].sum().item(), *draws)]
            return super().training_step(batch, batch_idx)

    plain, pruned = Recorder(), Recorder()
    for module, pruning in ((plain, []), (pruned, [callback(0, 1, batchnorm_batches=2)])):
        generator = torch.Generator().manual_seed(3) if own_generator else None
        fit(
            module,
            pruning,
            train=DataLoader(train, batch_size=6, shuffle=True, generator=generator),
            val=DataLoader(val, batch_size=6),
        )
    assert widths(pruned)["net.conv1"] == 2
    assert pruned.seen == plain.seen


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 3},
        {"detect_anomaly": True},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_trainer_options(fit: Fit, options: dict[str, Any]) -> None:
    module, pruning, rates = Classifier(), callback(batchnorm_batches=2), Rates()
    trainer = fit(module, [pruning, rates], **options)
    assert widths(module) == ALL_HALVED
    assert all(torch.isfinite(torch.tensor(module.losses)))
    assert len(module.losses) == 12
    assert trainer.global_step == (6 if "accumulate_grad_batches" in options else 12)
    wanted = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(
        options.get("precision"), torch.float32
    )
    assert {p.dtype for p in module.parameters()} == {wanted}


def test_the_gradient_scaler_goes_on(fit: Fit) -> None:
    """fp16 with a live scaler, as far as a CPU has it: scale and growth as in a run without a cut."""

    class Scales(pl.Callback):
        def __init__(self) -> None:
            self.states: list[dict[str, Any]] = []

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.states.append(trainer.precision_plugin.state_dict())

    def run(*callbacks: pl.Callback) -> Scales:
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        scales = Scales()
        fit(Classifier(), [*callbacks, scales], plugins=[plugin])
        assert scaler.is_enabled()
        return scales

    pruned, plain = run(callback()), run()
    assert pruned.states == plain.states
    assert len({state["scale"] for state in pruned.states}) > 1


def test_two_optimizers_in_manual_optimisation(fit: Fit) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def configure_optimizers(self) -> list[Optimizer]:
            late = [*self.net.fc1.parameters(), *self.net.fc2.parameters()]
            early = [p for p in self.net.parameters() if all(p is not q for q in late)]
            return [SGD(early, lr=0.05, momentum=0.9), Adam(late, lr=0.01)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.steps += 1
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            self.losses.append(loss.item())

    module, rates, probe = Manual(), Rates(), Probe()
    fit(module, [callback(0, 1), rates, probe], max_epochs=4)
    assert len(rates.optimizers) == 2
    start = probe.states["train_epoch_start", 2]
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, start[name])


def test_frozen_layers_stay_frozen(fit: Fit) -> None:
    module = Classifier(configure=lambda m: SGD([p for p in m.parameters() if p.requires_grad], lr=0.1))
    module.net.conv1.requires_grad_(False)
    module.net.bn1.requires_grad_(False)
    frozen = module.net.conv1.weight.detach().clone()
    pruning = callback()
    fit(module, [pruning])
    assert widths(module) == ALL_HALVED
    wanting = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert wanting == {"net.conv1.weight", "net.bn1.weight", "net.bn1.bias"}
    kept = pruning.steps[0].selections["net.conv1"].kept
    assert torch.equal(module.net.conv1.weight, frozen[kept])


def test_modes_set_by_the_user_survive(fit: Fit) -> None:
    """A BatchNorm frozen in eval mode stays there and keeps its statistics, also when recalibrating."""

    class Frozen(Classifier):
        def on_train_epoch_start(self) -> None:
            self.net.bn1.eval()

    module = Frozen()
    module.net.bn1.running_mean.copy_(torch.arange(8.0))
    pruning = callback(batchnorm_batches=2)
    fit(module, [pruning])
    kept = pruning.steps[0].selections["net.conv1"].kept
    assert torch.equal(module.net.bn1.running_mean, kept.float())
    assert not module.net.bn1.training
    assert module.net.bn2.training


def test_state_that_cannot_follow_is_dropped_with_a_warning(fit: Fit) -> None:
    module = Classifier(configure=lambda m: torch.optim.Adafactor(m.parameters(), lr=0.01))
    with pytest.warns(UserWarning, match=r"optimizer's state of .*net\.conv1\.weight.* another shape"):
        fit(module, [callback()])
    assert widths(module) == ALL_HALVED
    assert module.steps == 12


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_forward_that_counts_on_the_default_dtype(fit: Fit, precision: str) -> None:
    """Coordinates in the dtype that the Trainer sets for its passes."""

    class Coordinates(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            places = torch.linspace(-1, 1, x.shape[-1], device=x.device)
            return torch.cat([x, places.expand(len(x), 1, *x.shape[2:])], 1)

    net = nn.Sequential(Coordinates(), nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    module = Classifier(net)
    fit(module, [callback(0, batchnorm_batches=1, latency_batch_sizes=[1])], precision=precision)
    assert net[1].out_channels == 4
