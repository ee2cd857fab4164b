"""A fit that goes on after a cut has the teacher that it had."""

from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, Fit, Saver, callback, differences, job, sgd
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from acsp_lightning import Distillation

# ModelCheckpoint's words for a folder that is another one, or has files.
ELSEWHERE = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")
MOMENTS = ("epoch0-end", "epoch1-start", "epoch1-batch1", "epoch1-end", "epoch2-end", "epoch3-batch2")


def kept(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}")


def resumable(
    make_trainer: Fit, folder: Path, *others: pl.Callback, ema: bool = False, **options: Any
) -> dict[str, Any]:
    averages = [EMAWeightAveraging(decay=0.7)] if ema else []
    pruning = callback(0, 2, distillation=Distillation())
    return job(
        make_trainer,
        pruning,
        *averages,
        *others,
        kept(folder),
        max_epochs=5,
        enable_checkpointing=True,
        **options,
    )


@ELSEWHERE
@pytest.mark.parametrize("ema", [False, True])
def test_interrupted_equals_uninterrupted(make_trainer: Fit, tmp_path: Path, ema: bool) -> None:
    first = tmp_path / "first"
    whole = resumable(make_trainer, first, Saver(first), ema=ema)
    for name in MOMENTS:
        resumed = resumable(make_trainer, tmp_path / name, ema=ema, ckpt_path=first / f"{name}.ckpt")
        assert differences(resumed, whole) == [], f"resumed from {name}"


@ELSEWHERE
def test_a_fit_is_resumed_twice_and_elsewhere(make_trainer: Fit, tmp_path: Path) -> None:
    """The first network is beside the file, or where it was written, wherever a fit writes to."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    whole = resumable(make_trainer, first, Saver(first))
    file = first / "epoch1-batch1.ckpt"
    resumable(make_trainer, second, Saver(second), ckpt_path=file)
    assert not (second / "uncut-epoch=0.ckpt").exists()
    again = second / "epoch3-batch2.ckpt"
    assert differences(resumable(make_trainer, tmp_path / "other", ckpt_path=again), whole) == []
    first.rename(third)  # as one copies a run to another machine
    moved = third / "epoch3-batch2.ckpt"
    assert differences(resumable(make_trainer, tmp_path / "more", ckpt_path=moved), whole) == []


@ELSEWHERE
def test_a_teacher_that_is_gone_is_an_error(make_trainer: Fit, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    resumable(make_trainer, first, Saver(first))
    file = first / "epoch3-batch2.ckpt"
    (first / "uncut-epoch=0.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="set distillation to None") as caught:
        resumable(make_trainer, second, ckpt_path=file)
    for folder in (first, second):
        assert str(folder / "uncut-epoch=0.ckpt") in str(caught.value)
    # What it says helps.
    pruning = callback(0, 2)
    job(make_trainer, pruning, kept(second), max_epochs=5, enable_checkpointing=True, ckpt_path=file)
    assert len(pruning.steps) == 2


@ELSEWHERE
@pytest.mark.parametrize("ema", [False, True])
def test_a_teacher_that_is_another_network_is_an_error(
    make_trainer: Fit, tmp_path: Path, ema: bool
) -> None:
    """As another run leaves it in the folder, under the same name."""
    first, second = tmp_path / "first", tmp_path / "second"
    resumable(make_trainer, first, Saver(first), ema=ema)
    file, uncut = first / "epoch3-batch2.ckpt", first / "uncut-epoch=0.ckpt"
    content = torch.load(uncut, weights_only=True)
    content["state_dict"]["net.fc2.bias"][0] += 1e-6
    torch.save(content, uncut)
    with pytest.raises(FileNotFoundError, match=r"ckpt \(the weights of another network\)"):
        resumable(make_trainer, second, ckpt_path=file, ema=ema)


@ELSEWHERE
def test_a_teacher_on_another_file_system(make_trainer: Fit, tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}"
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)

    def run(**options: Any) -> dict[str, Any]:
        pruning = callback(0, 2, distillation=Distillation())
        return job(make_trainer, pruning, saving, max_epochs=5, enable_checkpointing=True, **options)

    try:
        whole = run()
        files = fsspec.filesystem("memory")
        assert files.isfile(f"{folder}/uncut-epoch=0.ckpt")
        assert not Path("memory:").exists()
        assert differences(run(ckpt_path=f"{folder}/epoch=3.ckpt"), whole) == []
        files.rm(f"{folder}/uncut-epoch=0.ckpt")
        with pytest.raises(FileNotFoundError, match=f"{folder}/uncut-epoch=0.ckpt .no such file"):
            run(ckpt_path=f"{folder}/epoch=3.ckpt")
    finally:
        fsspec.filesystem("memory").store.clear()


def test_checkpoints_without_a_teacher_are_warned_of(make_trainer: Fit, tmp_path: Path) -> None:
    def run(*others: pl.Callback, **options: Any) -> None:
        pruning = callback(0, distillation=Distillation())
        job(make_trainer, pruning, *others, **options)

    with pytest.warns(UserWarning, match="the uncut network is in no file") as caught:
        run(Saver(tmp_path))
    assert len([w for w in caught if "distillation" in str(w.message)]) == 1
    run(ckpt_path=tmp_path / "epoch0-end.ckpt")  # from before the cut
    with pytest.raises(FileNotFoundError, match="had no ModelCheckpoint"):
        run(ckpt_path=tmp_path / "epoch1-batch1.ckpt")


@ELSEWHERE
def test_a_fit_that_had_no_teacher_goes_on_with_one(make_trainer: Fit, tmp_path: Path) -> None:
    first = tmp_path / "first"
    alone = callback(0)
    job(make_trainer, alone, kept(first), Saver(first), enable_checkpointing=True)
    pruning, module = callback(0, distillation=Distillation()), Classifier(configure=sgd)
    saving, file = kept(tmp_path / "second"), first / "epoch1-batch1.ckpt"
    job(make_trainer, pruning, saving, module=module, enable_checkpointing=True, ckpt_path=file)
    assert module.trainer.callback_metrics["acsp/distillation_loss"] > 0
