"""Fits with a cut in the middle, in every way that a GPU is used."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Saver,
    at_least_six,
    callback,
    differences,
    job,
    only_whole,
    widths,
)
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from acsp_lightning import Guard, SelectionConfig, preview

pytestmark = [
    pytest.mark.gpu,
    # Lightning's hint where a test runs on the CPU of a machine with a GPU.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]
TESTS = Path(__file__).parents[1]


@pytest.fixture
def on_device(device: torch.device) -> dict[str, Any]:
    return {"accelerator": device.type, "devices": 1}


class Scales(pl.Callback):
    """The gradient scaler after every batch, and where the network is."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.devices: set[str] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.states.append(trainer.precision_plugin.state_dict())
        self.devices |= {tensor.device.type for tensor in pl_module.state_dict().values()}


def finite(module: Classifier) -> bool:
    return bool(torch.tensor(module.losses).isfinite().all())


@pytest.mark.parametrize("selection", [SelectionConfig(keep=0.5), SelectionConfig(flops=0.6)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions(
    precision: Any, selection: SelectionConfig, fit: Fit, on_device: Any, device: torch.device
) -> None:
    module, scales = Classifier(), Scales()
    pruning = callback(batchnorm_batches=2, selection=selection)
    trainer = fit(module, [pruning, scales], precision=precision, **on_device)
    assert trainer.global_step == 12
    assert finite(module)
    assert scales.devices == {device.type}
    assert sum(widths(module).values()) < sum(WIDTHS.values())
    assert len({p.dtype for p in module.parameters()}) == 1


def test_the_gradient_scaler_goes_on(fit: Fit, on_device: Any, device: torch.device) -> None:
    """fp16: scale and growth as in a run without a cut."""

    def run(*callbacks: pl.Callback) -> Scales:
        scaler = torch.amp.GradScaler(device.type, init_scale=16.0, growth_interval=3)
        plugin = MixedPrecision("16-mixed", device=device.type, scaler=scaler)
        scales, module = Scales(), Classifier()
        fit(module, [*callbacks, scales], plugins=[plugin], **on_device)
        assert finite(module)
        return scales

    pruned, plain = run(callback()), run()
    assert pruned.states == plain.states
    assert len({state["scale"] for state in pruned.states}) > 1


def test_channels_last(fit: Fit, on_device: Any) -> None:
    module = Classifier()
    module.net.to(memory_format=torch.channels_last)
    fit(module, [callback()], **on_device)
    assert widths(module) == ALL_HALVED
    assert module.net.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler, about the size of its problem
def test_compiled_with_a_cut_in_the_middle(fit: Fit, on_device: Any, device: torch.device) -> None:
    eager, compiled = Classifier(), Classifier()
    compiled.net.compile(backend="inductor" if device.type == "cuda" else "eager")
    pruning = [callback(), callback()]
    for module, own in zip((eager, compiled), pruning, strict=True):
        fit(module, [own], **on_device)
    assert widths(compiled) == widths(eager) == ALL_HALVED
    torch.testing.assert_close(
        torch.tensor(compiled.losses), torch.tensor(eager.losses), rtol=0.05, atol=0.02
    )


VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (callback, {}),
    "a guard that cuts again": (
        partial(callback, guard=Guard(0.1, "quality")),
        {"quality": at_least_six, "max_epochs": 4},
    ),
    "a guard that gives up": (
        partial(callback, guard=Guard(0.1, "quality", patience=2)),
        {"quality": only_whole, "max_epochs": 7},
    ),
}


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_equals_uninterrupted(
    variant: str, averaged: bool, make_trainer: Fit, on_device: Any, tmp_path: Path
) -> None:
    make, options = VARIANTS[variant]

    def run(*others: pl.Callback, **more: Any) -> dict[str, Any]:
        ema = [EMAWeightAveraging(decay=0.5)] if averaged else []
        return job(make_trainer, make(), *ema, *others, **options, **on_device, **more)

    whole = run(Saver(tmp_path))
    for name in ("epoch0-end", "epoch1-batch0", "epoch1-end"):
        resumed = run(ckpt_path=tmp_path / f"{name}.ckpt")
        assert differences(resumed, whole) == [], f"resumed from {name}"


def test_one_process_of_nccl(device: torch.device, tmp_path: Path) -> None:
    """In a process of its own, whose group goes with it. On the CPU it is one of gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0",
             "WORLD_SIZE": "1"}  # fmt: skip
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("nccl_job.py"), device.type, tmp_path],
        env=os.environ | group | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{'nccl' if device.type == 'cuda' else 'gloo'} {ALL_HALVED}"


def settings() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        torch.is_autocast_enabled("cuda"),
    )


@pytest.mark.filterwarnings("ignore")  # so few pictures decide by the damage
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_are_left_as_they_were_found(precision: str, device: torch.device) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = settings()
        net = Classifier().net.to(device)
        images, labels = torch.randn(30, 1, 6, 6, device=device), torch.arange(30) % 3
        preview(net, [(images, labels.to(device))], SelectionConfig(keep=0.5))
        assert settings() == found
        assert isinstance(net, nn.Module)
    finally:
        torch.set_float32_matmul_precision(before)
