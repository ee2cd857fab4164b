"""What each of two processes does for test_ddp.py.

Run as a program, Lightning launches the second, unless torchrun or SLURM has launched both.
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

import acsp_lightning.capture.hooks
import acsp_lightning.pipeline
import acsp_lightning.selection.proposal
import acsp_lightning.selection.weighing
import acsp_lightning.structure.refit
import acsp_lightning.trainer.reporting
from acsp_lightning import ACSPPruningCallback, Distillation, Guard, SelectionConfig
from acsp_lightning.capture.batches import read_batch
from acsp_lightning.serialization import encode
from helpers import clockwork
from helpers.fits import (
    Classifier,
    Scripted,
    at_least_six,
    callback,
    conv_net,
    noisy_images,
    train_loader,
    val_loader,
)
from helpers.lessons import HandTaught, Pupil
from helpers.normed import normed_net

SAMPLES = 17  # of validation; a DistributedSampler for two ranks repeats the first
PADDED = (*range(SAMPLES), 0)
CLASS_0 = range(0, SAMPLES, 3)
# Which samples the ranks validate on, in "shares".
SHARES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "sampler": (PADDED[::2], PADDED[1::2]),
    "uneven": ([i for i in range(SAMPLES) if i not in CLASS_0], CLASS_0),
    "none": (range(SAMPLES), ()),
}

RULES = {"keep": callback().selection, "damage": SelectionConfig(flops=0.5)}


# Whoever launches processes on two nodes, as torchrun and SLURM do, says how many each has.
DEVICES = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 2)


class Stream(IterableDataset[Any]):
    """Images of unknown number, perhaps none."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[Any]:
        return (noisy_images(SAMPLES, seed=2)[i] for i in self.indices)


class Counting(ACSPPruningCallback):
    """Notes how many collectives of objects it takes part in during a validation, by hook."""

    def count(self, hook: str, work: Callable[[], None]) -> None:
        calls, real = [], dist.all_gather_object
        dist.all_gather_object = lambda *a, **k: (calls.append(hook), real(*a, **k))
        try:
            work()
        finally:
            dist.all_gather_object = real
        self.collectives = [*getattr(self, "collectives", []), (hook, len(calls))]

    def on_validation_batch_start(self, *arguments: Any, **options: Any) -> None:
        work = super().on_validation_batch_start
        self.count("batch", lambda: work(*arguments, **options))

    def on_validation_end(self, *arguments: Any) -> None:
        work = super().on_validation_end
        self.count("end", lambda: work(*arguments))


def bare_net(width: int = 8) -> nn.Sequential:
    """Without BatchNorm, whose buffers are exchanged in the first batch of a validation, if any."""
    net = conv_net()
    net.conv1, net.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.Identity()
    net.conv2, net.bn2 = nn.Conv2d(width, 6, 3, padding=1), nn.Identity()
    return net


def still(module: nn.Module) -> torch.optim.Optimizer:
    """Trains nothing, so that all runs capture the same network."""
    return torch.optim.SGD(module.parameters(), lr=0.0)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


def evidence(pruning: ACSPPruningCallback) -> dict[str, Any]:
    """What was cut, what the decisions rest on, and what the report says of it."""
    return {
        "kept": [{n: s.kept.tolist() for n, s in step.selections.items()} for step in pruning.steps],
        "curves": [{n: s.curve for n, s in step.selections.items()} for step in pruning.steps],
        "samples": [step.samples for step in pruning.steps],
        "accuracies": [(step.accuracy_before, step.accuracy_after) for step in pruning.steps],
        "latency": [encode(step.latency) for step in pruning.steps],
    }


def fit(
    folder: Path,
    module: pl.LightningModule,
    pruning: ACSPPruningCallback,
    val: Any = None,
    wrapper: dict[str, Any] | None = None,
    others: Sequence[pl.Callback] = (),
    ckpt_path: Path | None = None,
    **options: Any,
) -> None:
    """Train in two gloo processes, and write down what this one has in the end."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        callbacks=[pruning, *others],
        default_root_dir=folder,
        strategy=DDPStrategy(**(wrapper or {})),
        devices=DEVICES,
        num_nodes=2 // DEVICES,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
    )
    optimizers: list[dict[str, Any]] = []
    module.on_fit_end = lambda: optimizers.extend(o.state_dict() for o in trainer.optimizers)
    batches = val_loader(SAMPLES) if val is None else val
    trainer.fit(module, train_loader(shuffle=False), batches, ckpt_path=ckpt_path, weights_only=True)
    found = {"state": module.state_dict(), "optimizers": optimizers, **evidence(pruning)}
    copies = [c._average_model for c in others if isinstance(c, EMAWeightAveraging)]
    found["averages"] = [copy.state_dict() for copy in copies if copy is not None]
    found["collectives"] = getattr(pruning, "collectives", [])
    torch.save(found, folder / f"found{trainer.global_rank}.pt")


def several(folder: Path, optimizer: str = "sgd") -> None:
    """Three cuts of one layer each, decided where the others could not."""
    if rank():

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("only rank 0 decides")

        acsp_lightning.selection.proposal.select_groups = refuse
    module = Classifier(configure=adam if optimizer == "adam" else None)
    pruning = callback(
        0, 1, 2, layers_per_epoch=1, report_dir=folder / f"records{rank()}", report_plots=True
    )
    fit(folder, module, pruning, max_epochs=5)


def shares(folder: Path, kind: str, rule: str = "keep") -> None:
    """Capture where validation batches are spread over the ranks in a certain way."""
    # All, as in the process that it is compared with.
    acsp_lightning.capture.hooks.INPUT_POSITIONS = acsp_lightning.structure.refit.POSITIONS = 64
    weighed, weigh = [], acsp_lightning.selection.weighing.weigh_group

    def noted(model: nn.Module, group: Any, *arguments: Any, **options: Any) -> Any:
        weighed.append(group.name)
        return weigh(model, group, *arguments, **options)

    acsp_lightning.selection.weighing.weigh_group = noted
    mine = SHARES[kind][rank()]
    loaders = {
        "sampler": None,
        "uneven": DataLoader(Subset(noisy_images(SAMPLES, seed=2), mine), batch_size=4),
        "none": DataLoader(Stream(mine), batch_size=6),
    }
    pruning = Counting((0,), selection=RULES[rule])
    sampler = kind == "sampler"
    module = Classifier(bare_net(), configure=still)
    fit(folder, module, pruning, loaders[kind], use_distributed_sampler=sampler)
    found = torch.load(folder / f"found{rank()}.pt")
    torch.save({**found, "weighed": weighed}, folder / f"found{rank()}.pt")


def option(folder: Path, name: str) -> None:
    """Options of DistributedDataParallel and the Trainer."""
    wrapper = {
        "find_unused": {"find_unused_parameters": True},
        "static": {"static_graph": True},
        "view": {"gradient_as_bucket_view": True},
    }
    trainer = {"accumulate": {"accumulate_grad_batches": 2}, "bf16": {"precision": "bf16-mixed"}}
    module = Classifier()
    if name == "find_unused":
        module.spare = nn.Linear(2, 2)
    pruning = callback(0, 2, layers_per_epoch=2, batchnorm_batches=2)
    fit(folder, module, pruning, wrapper=wrapper.get(name), max_epochs=5, **trainer.get(name, {}))


class TwoNames(Classifier):
    """Runs the layers of its network under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = nn.Sequential(*self.net.children())

    def forward(self, images: Any) -> Any:
        return self.taken(images)


def averaged(folder: Path, name: str) -> None:
    """Averages of the weights, over a cut."""
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=1)
    other = swa if name == "swa" else EMAWeightAveraging(decay=0.7)
    module = TwoNames() if name == "two names" else Classifier()
    fit(folder, module, callback(1), others=[other], max_epochs=4)


class Holder(pl.Callback):
    """Holds a copy of the network, which the first process alone averages if it is frozen."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        frozen = isinstance(self.held, nn.Module) and not next(self.held.parameters()).requires_grad
        if frozen and trainer.is_global_zero:
            for slow, fast in zip(self.held.parameters(), pl_module.net.parameters(), strict=True):
                slow.lerp_(fast.detach(), 0.5)

    def state(self) -> Any:
        return self.held.state_dict() if isinstance(self.held, nn.Module) else self.held


def held(folder: Path) -> None:
    """Copies of a network that does not train: on one process alone, and alike or not on both."""
    module = Classifier(configure=still)
    frozen = copy.deepcopy(module.net).requires_grad_(False)
    for parameter in frozen.parameters():
        parameter.mul_(2.0)
    holders = {
        "part of the first": Holder(None if rank() else copy.deepcopy(module.net)),
        "whole of the second": Holder(copy.deepcopy(module) if rank() else None),
        "part": Holder(copy.deepcopy(module.net)),
        "frozen": Holder(frozen),
        "tensors": Holder({n: p.detach().clone() for n, p in module.named_parameters()}),
    }
    fit(folder, module, callback(), others=list(holders.values()))
    found = torch.load(folder / f"found{rank()}.pt")
    found["held"] = {name: holder.state() for name, holder in holders.items()}
    torch.save(found, folder / f"found{rank()}.pt")


def normed(folder: Path) -> None:
    """A cut through norms that take all channels together, with averages of the weights."""
    ema = EMAWeightAveraging(decay=0.7)
    pruning = callback(1, norms="refit", residual=True)
    fit(folder, Classifier(normed_net(), configure=adam), pruning, others=[ema], max_epochs=4)


def guarded(folder: Path) -> None:
    """A cut that is undone and made again at half the depth."""
    pruning = callback(0, guard=Guard(0.1, "quality"), report_dir=folder / "records")
    fit(folder, Scripted(at_least_six), pruning, others=[EMAWeightAveraging(decay=0.7)], max_epochs=4)


def timed(folder: Path, outcome: str) -> None:
    """A cut that is timed, or cannot be, by the first process alone."""
    real = acsp_lightning.pipeline.compare_latency

    def compare(*arguments: Any) -> Any:
        assert rank() == 0
        if outcome == "fails":
            raise RuntimeError("no clock")
        return real(*arguments, min_runs=3, min_seconds=0)

    acsp_lightning.pipeline.compare_latency = compare
    fit(folder, Classifier(), callback(latency_batch_sizes=[2]))


def in_time(folder: Path, outcome: str) -> None:
    """A target in time, on a clock that only the first process has, by two cuts."""

    def seconds(network: Any, arguments: Any) -> float:
        assert rank() == 0, "only rank 0 times"
        return clockwork.network_seconds(network, arguments)

    with pytest.MonkeyPatch.context() as patch:
        clockwork.set_clock(patch, seconds)
        patch.setattr(clockwork, "BLOCK_OUT", 2)
        share = 0.75 if outcome == "met" else 0.01
        pruning = callback(
            0, 1, selection=SelectionConfig(latency=share, curve="damage"), report_dir=folder / "records"
        )
        fit(folder, Classifier(), pruning, max_epochs=4)
    found = torch.load(folder / f"found{rank()}.pt")
    found["times"] = [encode(step.times) for step in pruning.steps]
    torch.save(found, folder / f"found{rank()}.pt")


def resumed(folder: Path, moment: str) -> None:
    """A fit, and another that goes on from a checkpoint of the first."""

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(folder / f"epoch{trainer.current_epoch}.ckpt")

    ema = EMAWeightAveraging(decay=0.7)
    fit(folder, Classifier(configure=adam), callback(1), others=[ema, Save()], max_epochs=4)
    (folder / f"found{rank()}.pt").rename(folder / f"whole{rank()}.pt")
    dist.barrier()
    ema, file = EMAWeightAveraging(decay=0.7), folder / f"{moment}.ckpt"
    module = Classifier(configure=adam)
    fit(folder, module, callback(1), others=[ema], max_epochs=4, ckpt_path=file)


def measured(folder: Path, tolerance: str) -> None:
    """A volume that is measured by the first process, on samples of its own."""
    real = acsp_lightning.pipeline.Trials

    def trials(*arguments: Any) -> Any:
        assert rank() == 0
        return real(*arguments)

    acsp_lightning.pipeline.Trials = trials
    selection = SelectionConfig(tolerance=float(tolerance)) if tolerance else SelectionConfig()
    # Recovered, so small a network would lose nothing at any depth, and have no knee.
    pruning = callback(2, selection=selection, recovery="none")
    fit(folder, Classifier(), pruning, val_loader(480), max_epochs=5)
    found = torch.load(folder / f"found{rank()}.pt")
    (step,) = pruning.steps
    found["trade_off"] = encode(step.trade_off)
    torch.save(found, folder / f"found{rank()}.pt")


def taught(folder: Path, how: str) -> None:
    """Taught by the network before the first cut: by a loss written by hand, and by the callback."""
    manual = how == "manual"
    options: dict[str, Any] = {
        "manual": {},
        "static": {"wrapper": {"static_graph": True}},
        "find_unused": {"wrapper": {"find_unused_parameters": True}},
        "accumulate": {"accumulate_grad_batches": 2},
    }[how]
    fit(folder, HandTaught(manual=manual), callback(0, 2), max_epochs=5, **options)
    (folder / f"found{rank()}.pt").rename(folder / f"whole{rank()}.pt")
    dist.barrier()
    pruning = callback(0, 2, distillation=Distillation())
    fit(folder, Pupil(manual=manual), pruning, max_epochs=5, **options)


def taught_again(folder: Path) -> None:
    """The same after a resume."""

    def run(file: Path | None = None) -> None:
        saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        pruning = callback(0, 2, distillation=Distillation())
        options = {"ckpt_path": file, "max_epochs": 5, "enable_checkpointing": True}
        fit(folder, Classifier(), pruning, others=[saving], **options)

    run()
    (folder / f"found{rank()}.pt").rename(folder / f"whole{rank()}.pt")
    dist.barrier()
    run(folder / "epoch=3.ckpt")


def patient(folder: Path, limit: str) -> None:
    """Rank 0 decides and reports for longer than any collective of this fit may take."""
    real = acsp_lightning.selection.proposal.select_groups
    write = acsp_lightning.trainer.reporting.write_step

    class Limited(ACSPPruningCallback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            time_limit = timedelta(seconds=float(limit))
            dist.distributed_c10d._set_pg_timeout(time_limit, dist.group.WORLD)
            super().on_fit_start(trainer, pl_module)

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(1.5 * float(limit))
        return real(*arguments, **options)

    def slow_report(*arguments: Any) -> Any:
        time.sleep(1.5 * float(limit))
        return write(*arguments)

    acsp_lightning.selection.proposal.select_groups = slowly
    acsp_lightning.trainer.reporting.write_step = slow_report
    pruning = Limited((0,), selection=callback().selection, report_dir=folder / "records")
    fit(folder, Classifier(), pruning, max_epochs=2)


def failure(folder: Path, name: str) -> None:
    """Something is wrong on one rank only."""
    width, options, val = 8, {}, None
    if name == "width" and rank() == 1:
        width = 7
    if name == "groups" and rank() == 1:
        options = {"exclude": ["net.fc1"]}
    if name in ("capture", "accuracy") and rank() == 1:
        # The first call reads the example, the next two the batches of the capture.
        options = {"read_batch": Unreadable(at=2 if name == "capture" else 4)}
    if name == "nan":  # of unknown length on both ranks, or Lightning itself would wait
        val = DataLoader((Nan if rank() else Stream)(range(6)), batch_size=6)
    if name == "decision" and rank() == 0:

        def fail(*_: Any, **__: Any) -> None:
            raise ValueError("no curve for net.conv2")

        acsp_lightning.selection.proposal.select_groups = fail
    if name == "empty":
        val = DataLoader(Subset(noisy_images(SAMPLES, seed=2), range(6 * (1 - rank()))), batch_size=6)
    module = Classifier(bare_net(width))
    module.allow_zero_length_dataloader_with_multiple_devices = name == "empty"
    fit(
        folder,
        module,
        callback(**options),
        val,
        num_sanity_val_steps=0,
        use_distributed_sampler=val is None,
    )


class Unreadable:
    """A reader of batches that fails at a certain call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, batch: Any) -> tuple[Any, Tensor]:
        self.left -= 1
        if self.left == 0:
            raise KeyError("label of rank 1")
        return read_batch(batch)


class Nan(Stream):
    """Images that went wrong."""

    def __iter__(self) -> Iterator[Any]:
        return ((image * torch.nan, label) for image, label in super().__iter__())


JOBS: dict[str, Callable[..., None]] = {
    "several": several,
    "shares": shares,
    "option": option,
    "averaged": averaged,
    "held": held,
    "normed": normed,
    "guarded": guarded,
    "timed": timed,
    "in_time": in_time,
    "resumed": resumed,
    "measured": measured,
    "taught": taught,
    "taught_again": taught_again,
    "patient": patient,
    "failure": failure,
}


def rank() -> int:
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def join(job: str, folder: Path, *arguments: str, process: int, port: int) -> None:
    """Do ``job`` as one of two processes that somebody else started."""
    os.environ.update(LOCAL_RANK=str(process), NODE_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    JOBS[job](folder, *arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    JOBS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
