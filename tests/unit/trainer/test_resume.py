"""Single checkpoints; whole fits that are interrupted are in integration/test_resume.py."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import Classifier, Fit, Saver, conv_net, same_state, snapshot

from acsp_lightning.trainer.resume import fix_loop_progress, verify_before_load


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save(conv_net().state_dict(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_damaged_file_is_found_before_its_weights_are_taken(damaged: Path) -> None:
    module = conv_net()
    before = snapshot(module)
    others = {name: torch.zeros_like(value) for name, value in before.items()}
    handle = verify_before_load(module, lambda: damaged)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        module.load_state_dict(others)
    assert same_state(snapshot(module), before)
    handle.remove()
    module.load_state_dict(others)
    assert same_state(snapshot(module), others)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("acsp_lightning.trainer.resume.verify_checksums", read.append)
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"")
    module = conv_net()
    sources = iter([None, "s3://bucket/last.ckpt", tmp_path, path, path])
    verify_before_load(module, lambda: next(sources))
    for _ in range(5):
        module.load_state_dict(module.state_dict())
    assert read == [str(path)]


@pytest.fixture
def checkpoints(fit: Fit, tmp_path: Path) -> dict[str, Any]:
    """Of every moment of a fit without cuts, by name."""
    fit(Classifier(), [Saver(tmp_path)], max_epochs=2)
    return {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}


def fixed(checkpoint: dict[str, Any], *epochs: int) -> dict[str, Any]:
    found = copy.deepcopy(checkpoint)
    fix_loop_progress(found, epochs)
    loops: dict[str, Any] = found["loops"]["fit_loop"]
    return loops


def test_progress_without_a_capture_stays_as_it_is(checkpoints: dict[str, Any]) -> None:
    assert len(checkpoints) > 10
    for name, checkpoint in checkpoints.items():
        if not name.endswith("start"):
            assert fixed(checkpoint) == checkpoint["loops"]["fit_loop"], name


def test_an_epoch_that_was_about_to_begin_begins(checkpoints: dict[str, Any]) -> None:
    for epoch in (0, 1):
        loops = fixed(checkpoints[f"epoch{epoch}-start"], 0, 1)
        batch = loops["epoch_loop.batch_progress"]
        assert set(batch["current"].values()) == {0}
        assert not batch["is_last_batch"]
        assert batch["total"]["completed"] == 4 * epoch


def test_a_validation_that_was_due_or_under_way_is_done_from_its_start(
    checkpoints: dict[str, Any],
) -> None:
    for moment in ("batch3", "step4-validation", "step4-validation1"):
        checkpoint = checkpoints[f"epoch0-{moment}"]
        loops = fixed(checkpoint, 0)
        val = loops["epoch_loop.val_loop.batch_progress"]
        assert val["current"]["completed"] == 0, moment
        assert not val["is_last_batch"]
        batch = loops["epoch_loop.batch_progress"]
        assert batch["current"]["completed"] == batch["current"]["processed"] == 4
        assert fixed(checkpoint, 1) == checkpoint["loops"]["fit_loop"], "no other epoch is touched"


def test_training_batches_that_are_left_come_first(checkpoints: dict[str, Any]) -> None:
    checkpoint = checkpoints["epoch0-batch1"]
    assert fixed(checkpoint, 0) == checkpoint["loops"]["fit_loop"]
