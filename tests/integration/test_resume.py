"""A fit that was interrupted ends as one that was not; pruned files load wherever files load."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    Classifier,
    Fit,
    Saver,
    at_least_six,
    callback,
    differences,
    job,
    only_whole,
    sgd,
    train_loader,
    val_loader,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn

from acsp_lightning import ACSPPruningCallback, Guard, SelectionConfig, load_pruned
from acsp_lightning.serialization import encode


def adam(module: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# -- interrupted equals uninterrupted ------------------------------------------------------------------
TURNING_POINTS = (  # around the capture in epoch 0, the cut in epoch 1, and in the epochs after
    "epoch0-batch1",
    "epoch0-batch3",
    "epoch0-step4-validated",
    "epoch0-end",
    "epoch1-batch0",
    "epoch1-batch3",
    "epoch1-end",
    "epoch2-batch1",
)
FLOPS = SelectionConfig(flops=0.6)
Make = Callable[[], ACSPPruningCallback]
VARIANTS: dict[str, tuple[Make, dict[str, Any], tuple[str, ...] | None]] = {
    "every moment": (callback, {}, None),
    "adam": (callback, {"configure": adam}, TURNING_POINTS),
    "two cuts": (partial(callback, 0, 2), {"max_epochs": 5}, (*TURNING_POINTS, "epoch2-end")),
    "one layer per epoch": (partial(callback, 0, 1, layers_per_epoch=1), {}, TURNING_POINTS),
    "flops": (partial(callback, 0, 1, layers_per_epoch=1, selection=FLOPS), {}, TURNING_POINTS),
    "two validations per epoch": (
        callback,
        {"val_check_interval": 0.5},
        ("epoch0-batch1", "epoch0-batch2", "epoch0-batch3", "epoch0-step4-validation1"),
    ),
    # Gradients are in no checkpoint, so these are those right after a step.
    "accumulation": (
        callback,
        {"accumulate_grad_batches": 2},
        ("epoch0-batch1", "epoch0-batch3", "epoch1-batch1"),
    ),
    "a guard that cuts again": (
        partial(callback, guard=Guard(0.1, "quality")),
        {"quality": at_least_six, "max_epochs": 4},
        (*TURNING_POINTS, "epoch1-step8-validated", "epoch2-start", "epoch2-end", "epoch3-batch1"),
    ),
    "a guard that gives up": (
        partial(callback, guard=Guard(0.1, "quality", patience=2)),
        {"quality": only_whole, "max_epochs": 7, "configure": adam},
        (*TURNING_POINTS, "epoch2-step12-validated", "epoch3-start", "epoch4-end", "epoch5-batch1"),
    ),
    "max_steps": (callback, {"max_epochs": -1, "max_steps": 11}, TURNING_POINTS),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_equals_uninterrupted(variant: str, make_trainer: Fit, tmp_path: Path) -> None:
    make, options, moments = VARIANTS[variant]
    whole = job(make_trainer, make(), Saver(tmp_path), **options)
    assert len(whole["steps"]) == len(make().epochs) * (2 if "quality" in options else 1)
    names = [path.stem for path in tmp_path.glob("*.ckpt")] if moments is None else moments
    assert len(names) == (33 if moments is None else len(moments))
    for name in names:
        resumed = job(make_trainer, make(), ckpt_path=tmp_path / f"{name}.ckpt", **options)
        # After its last epoch nothing is left to run, and no hook is called that could measure the end.
        over = moments is None and name == "epoch2-end"
        assert differences(resumed, whole) == ["/steps/0/end"] * over, f"resumed from {name}"


@pytest.mark.parametrize("ema_first", [True, False])
def test_averaged_weights_are_resumed(ema_first: bool, make_trainer: Fit, tmp_path: Path) -> None:
    def fit(*others: pl.Callback, **options: Any) -> dict[str, Any]:
        ema = EMAWeightAveraging(decay=0.5)
        pruning = callback()
        trainer_of = partial(make_trainer, ema) if ema_first else make_trainer
        last = () if ema_first else (ema,)
        return job(trainer_of, pruning, *last, *others, **options)

    whole = fit(Saver(tmp_path))
    assert whole["widths"] == ALL_HALVED
    for name in TURNING_POINTS:
        resumed = fit(ckpt_path=tmp_path / f"{name}.ckpt")
        assert differences(resumed, whole) == [], f"resumed from {name}"


@pytest.mark.parametrize("swa_first", [True, False])
def test_swa_is_resumed(swa_first: bool, make_trainer: Fit, tmp_path: Path) -> None:
    def fit(*others: pl.Callback, **options: Any) -> dict[str, Any]:
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=1)
        trainer_of = partial(make_trainer, swa) if swa_first else make_trainer
        last = () if swa_first else (swa,)
        return job(trainer_of, callback(1), *last, *others, max_epochs=4, **options)

    whole = fit(Saver(tmp_path))
    assert whole["widths"] == ALL_HALVED
    # In the middle of an epoch SWA does not go on as it would have, with or without a cut.
    for name in ("epoch0-end", "epoch1-end", "epoch2-end"):
        resumed = fit(ckpt_path=tmp_path / f"{name}.ckpt")
        assert differences(resumed, whole) == [], f"resumed from {name}"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_the_files_of_model_checkpoint(make_trainer: Fit, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "files", every_n_train_steps=3, save_top_k=-1)
    whole = job(make_trainer, callback(), checkpoints, enable_checkpointing=True)
    files = sorted((tmp_path / "files").glob("*.ckpt"))
    steps = [f"epoch={e}-step={s}" for e, s in ((0, 3), (1, 6), (2, 9), (2, 12))]
    assert {file.stem for file in files} == {*steps, "uncut-epoch=0"}
    for file in files:
        checkpoints = ModelCheckpoint(tmp_path / "files", every_n_train_steps=3, save_top_k=-1)
        resumed = job(make_trainer, callback(), checkpoints, ckpt_path=file, enable_checkpointing=True)
        assert differences(resumed, whole) == [], f"resumed from {file.name}"


class Failing(pl.Callback):
    """Raises once, in one hook."""

    def __init__(self, hook: str, epoch: int) -> None:
        self.epoch = epoch
        setattr(self, hook, self.fail)

    def fail(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            self.epoch = -1
            raise RuntimeError("the power went off")


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [
        ("on_validation_start", 0),
        ("on_validation_batch_start", 0),
        ("on_validation_batch_end", 0),
        ("on_train_epoch_end", 0),
        ("on_train_epoch_start", 1),
    ],
)
def test_checkpoints_written_on_an_exception(
    hook: str, epoch: int, make_trainer: Fit, tmp_path: Path
) -> None:
    whole = job(make_trainer, callback())
    rescue = OnExceptionCheckpoint(tmp_path)
    # Lightning looks for a file to go on from, and says that there is none.
    with pytest.raises(RuntimeError, match="power"), pytest.warns(UserWarning, match="ckpt_path"):
        job(make_trainer, callback(), Failing(hook, epoch), rescue, enable_checkpointing=True)
    resumed = job(make_trainer, callback(), ckpt_path=tmp_path / "on_exception.ckpt")
    assert differences(resumed, whole) == []


@pytest.mark.parametrize("guard", [None, Guard(10.0, "val_loss", mode="min")])
def test_a_fit_that_fails_in_the_midst_of_a_cut_goes_on(
    guard: Guard | None, make_trainer: Fit, tmp_path: Path
) -> None:
    """The network is cut, and there is no record: nothing is cut again, and nothing judged."""
    failing, rescue = Failing("on_pruned", 1), OnExceptionCheckpoint(tmp_path)
    options = {"enable_checkpointing": True, "max_epochs": 4}
    with pytest.raises(RuntimeError, match="power"), pytest.warns(UserWarning, match="ckpt_path"):
        job(make_trainer, callback(guard=guard), failing, rescue, **options)
    again = callback(guard=guard)
    with pytest.warns(UserWarning, match="epochs has 0, but this fit begins with epoch 1"):
        left = job(make_trainer, again, ckpt_path=tmp_path / "on_exception.ckpt", max_epochs=4)
    assert left["steps"] == []
    assert left["widths"] == job(make_trainer, callback(), max_epochs=4)["widths"]


@pytest.mark.parametrize("moment", ["epoch0-batch1", "epoch1-batch1"])
def test_a_fit_that_failed_goes_on_with_the_same_objects(
    moment: str, make_trainer: Fit, tmp_path: Path
) -> None:
    whole = job(make_trainer, callback(), Saver(tmp_path))
    module, pruning, failing = Classifier(configure=sgd), callback(), Failing("on_train_epoch_end", 1)
    with pytest.raises(RuntimeError, match="power"):
        job(make_trainer, pruning, failing, module=module)
    assert len(pruning.steps) == 1
    resumed = job(make_trainer, pruning, module=module, ckpt_path=tmp_path / f"{moment}.ckpt")
    assert differences(resumed, whole) == []


def test_a_new_fit_after_a_failed_one_starts_afresh(make_trainer: Fit) -> None:
    whole = job(make_trainer, callback())
    pruning = callback()
    with pytest.raises(RuntimeError, match="power"):
        job(make_trainer, pruning, Failing("on_train_epoch_end", 0))
    assert differences(job(make_trainer, pruning), whole) == []


def test_every_fit_has_a_list_of_steps_of_its_own(make_trainer: Fit, tmp_path: Path) -> None:
    pruning = callback()
    job(make_trainer, pruning)
    first, kept = pruning.steps, list(pruning.steps)
    whole = job(make_trainer, pruning, Saver(tmp_path))
    assert len(whole["steps"]) == 1
    assert pruning.steps is not first
    assert first == kept
    resumed = job(make_trainer, callback(), ckpt_path=tmp_path / "epoch1-end.ckpt")
    assert differences(resumed, whole) == []


def test_numpy_scalars_become_plain() -> None:
    plain = encode({"share": np.float64(0.5), "flag": True, "name": np.str_("conv")})
    assert [type(value) for value in plain.values()] == [float, bool, str]


# -- what the version before this format wrote ---------------------------------------------------------
BEFORE: dict[str, Any] = {
    "steps": [{"__kind__": "PruningStep", "epoch": 0, "plan": {"__kind__": "PruningPlan", "cuts": ()}}],
    "earlier": 0,
    "visited": ["net.conv1"],
    "initial": {
        "__kind__": "Complexity",
        "parameters": 1,
        "flops": 1,
        "by_layer": {},
        "unsupported": {},
    },
    "captured": None,
    "trial": None,
}


def test_a_fit_cannot_go_on_from_a_state_without_a_mark_and_says_what_to_do(
    fit: Fit, make_trainer: Fit, tmp_path: Path
) -> None:
    trainer = fit(Classifier(), [callback(0)])
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    (key,) = (key for key in content["callbacks"] if "ACSP" in key)
    content["callbacks"][key] = BEFORE
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"pruning callback's state .*no format mark.*load_pruned"):
        make_trainer(callback(0), max_epochs=4).fit(
            Classifier(), train_loader(), val_loader(), ckpt_path=tmp_path / "old.ckpt"
        )
    loaded = load_pruned(Classifier(), tmp_path / "old.ckpt")
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_workers_that_persist_serve_a_resumed_epoch_whole(make_trainer: Fit, tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        return {"train_dataloaders": train_loader(num_workers=1, persistent_workers=True),
                "val_dataloaders": val_loader()}  # fmt: skip

    module = Classifier()
    make_trainer(callback(batchnorm_batches=2), Saver(tmp_path), max_epochs=2).fit(module, **data())
    again = Classifier()
    trainer = make_trainer(callback(batchnorm_batches=2), max_epochs=2)
    trainer.fit(again, **data(), ckpt_path=tmp_path / "epoch0-end.ckpt", weights_only=True)
    assert (trainer.current_epoch, trainer.global_step) == (2, module.steps)
    assert again.steps == module.steps // 2


def test_an_epoch_without_a_layer_left_is_not_missed_after_a_resume(
    make_trainer: Fit, tmp_path: Path
) -> None:
    def pruning() -> ACSPPruningCallback:
        return callback(0, 1, 2, 3, layers_per_epoch=1)

    with pytest.warns(UserWarning, match="Every layer was visited before epoch 3"):
        whole = job(make_trainer, pruning(), Saver(tmp_path), max_epochs=6)
    resumed = job(make_trainer, pruning(), ckpt_path=tmp_path / "epoch3-end.ckpt", max_epochs=6)
    assert differences(resumed, whole) == []
