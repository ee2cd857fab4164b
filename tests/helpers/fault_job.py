"""The process that test_faults.py kills: python -m helpers.fault_job TASK FOLDER [STEP ...]."""

import json
import os
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from acsp_lightning.serialization import encode
from helpers import fits
from helpers.fits import Classifier, ResumableLoader, callback, equal, widths

KILLS = 12
STEPS = 12  # three epochs of four batches


class Diary(pl.Callback):
    """Notes every batch that was trained, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.global_step}\n")


class Killer(pl.Callback):
    """Kills the process in one training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, *others: pl.Callback) -> None:
    """The whole job, which goes on from its last checkpoint if there is one; writes result.pt."""
    module, pruning = Classifier(), callback()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            pruning,
            Diary(folder / "diary"),
            *others,
            ModelCheckpoint(folder, every_n_train_steps=1, save_last=True),
        ],
    )
    trainer.fit(
        module,
        ResumableLoader(fits.noisy_images(24, seed=1), batch_size=6),
        fits.val_loader(),
        ckpt_path="last",
    )
    left = {
        "widths": widths(module),
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "steps": pruning.steps,
        "progress": (trainer.current_epoch, trainer.global_step),
    }
    torch.save(encode(left), folder / "result.pt")


class Counting:
    """Counts Python calls of this process, and kills it at the chosen one."""

    def __init__(self, last: int | None = None) -> None:
        self.calls = 0
        self.last = last

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self.calls += 1
            if self.calls == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """Do ``work`` in a forked process; returns its exit status (negative: the signal).

    Only for work without arithmetic, or from a process that runs torch on one thread.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(folder: Path, last: int | None = None) -> None:
    counting = Counting(last)
    sys.setprofile(counting)
    train(folder)
    sys.setprofile(None)
    (folder / "calls").write_text(str(counting.calls))


def batches_trained(folder: Path) -> list[int]:
    diary = folder / "diary"
    return [int(line) for line in diary.read_text().split()] if diary.exists() else []


def kill_many(root: Path) -> None:
    """Kill the job at moments spread over its calls, resume it, and print what was found as JSON."""
    warnings.simplefilter("ignore")
    (root / "whole").mkdir()
    assert in_child(lambda: counted(root / "whole")) == 0
    calls = int((root / "whole" / "calls").read_text())
    whole = torch.load(root / "whole" / "result.pt", weights_only=True)
    chance, found = random.Random(0), Counter[str]()
    for number in range(KILLS):
        folder = root / f"killed{number}"
        folder.mkdir()
        moment = chance.randrange(calls * number // KILLS, calls * (number + 1) // KILLS) + 1
        assert in_child(lambda: counted(folder, moment)) == -signal.SIGKILL  # noqa: B023
        before = batches_trained(folder)
        records = [json.loads(file.read_text()) for file in folder.rglob("*.json")]
        stage = "after the cut" if records else "before the cut"
        found[f"killed {stage}"] += 1
        found["without a checkpoint"] += not (folder / "last.ckpt").exists()
        assert in_child(lambda: train(folder)) == 0  # noqa: B023
        after = batches_trained(folder)[len(before) :]
        found["batches trained again"] += len(set(before) & set(after))
        found["batches lost"] += len(set(range(STEPS)) - set(before) - set(after))
        found["batches in all"] += len(before) + len(after)
        result = torch.load(folder / "result.pt", weights_only=True)
        found["equal to the uninterrupted fit"] += same(result, whole)
    print(json.dumps({"calls": calls, **found}))


def same(a: Any, b: Any) -> bool:
    """Whether two trees of plain data are the same, tensors to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return equal(a, b)


if __name__ == "__main__":
    task, place, *numbers = sys.argv[1:]
    if task == "kill":
        kill_many(Path(place))
    else:
        train(Path(place), *[Killer(int(number)) for number in numbers])
