"""Killed processes, damaged files, full disks. The process to be killed is helpers/fault_job.py."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fault_job, fits
from helpers.fault_job import KILLS, STEPS, batches_trained, in_child, same, train
from helpers.fits import ALL_HALVED, Classifier, Fit, callback, same_state, snapshot, widths
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from acsp_lightning import load_pruned
from acsp_lightning.report import find_records, write_step

pytestmark = [
    pytest.mark.fault,
    # Python 3.12 warns when a process with threads forks; the children here start none.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
TESTS = Path(fault_job.__file__).parents[1]


def script(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "helpers.fault_job", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )


# -- killed processes ----------------------------------------------------------------------------------
def test_nothing_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    done = script("kill", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["equal to the uninterrupted fit"] == KILLS
    assert found["batches lost"] == 0
    assert found["batches trained again"] <= KILLS  # at most the batch under way
    assert found["killed before the cut"] >= 3
    assert found["killed after the cut"] >= 3


@pytest.mark.filterwarnings("ignore:.*last.* is set, but there is no")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists")
def test_a_new_interpreter_goes_on(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the others, since sums depend on it
    try:
        train(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)

    # Not forked from here: a child of this process could wait for ever for its parent's threads.
    assert script("train", tmp_path / "killed", 6).returncode == -signal.SIGKILL
    assert batches_trained(tmp_path / "killed")[-1] == 6
    done = script("train", tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    results = [torch.load(tmp_path / n / "result.pt", weights_only=True) for n in ("whole", "killed")]
    assert same(*results)


# -- damaged files -------------------------------------------------------------------------------------
@pytest.fixture
def checkpoint(fit: Fit, tmp_path: Path) -> Path:
    """A Lightning checkpoint of a pruned network, with all that a callback stores in it."""
    trainer = fit(Classifier(), [callback()])
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    return tmp_path / "pruned.ckpt"


def check_damaged(path: Path, content: bytes, expected: dict[str, Any]) -> bool:
    """Load a damaged file: an error that names it and an untouched model, or the very weights."""
    path.write_bytes(content)
    module = Classifier()
    before, objects = snapshot(module), list(map(id, module.parameters()))
    message = None
    try:
        load_pruned(module, path)
    except ValueError as error:
        message = str(error)
    if message is None:
        assert same_state(snapshot(module), expected)
        return False
    assert re.search(f"{re.escape(str(path))}|does not fit|the file lacks|only the file has", message)
    assert same_state(snapshot(module), before)
    assert list(map(id, module.parameters())) == objects
    return True


def test_truncated_files(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    chance = random.Random(1)
    lengths = [0, 1, 2, 4, 100, len(content) - 1, *chance.sample(range(len(content)), 100)]
    for length in lengths:
        assert check_damaged(checkpoint, content[:length], {}), f"cut to {length} bytes"


def test_flipped_bits(checkpoint: Path) -> None:
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    content = checkpoint.read_bytes()
    chance, refused = random.Random(2), 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        refused += check_damaged(checkpoint, bytes(damaged), expected)
    print(f"{refused} of 400 refused, the others changed no weight")
    assert refused >= 200


def test_damaged_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    module = Classifier()
    save_file(module.state_dict(), path)
    content = path.read_bytes()
    chance = random.Random(3)
    for length in [0, 4, len(content) - 1, *chance.sample(range(len(content)), 50)]:
        assert check_damaged(path, content[:length], {}), f"cut to {length} bytes"
    # Safetensors has no checksum: only the header, which says how the data are laid out, is checked.
    header = int.from_bytes(content[:8], "little")
    for position in chance.sample(range(8, 8 + header), 100):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.randrange(8)
        check_damaged(path, bytes(damaged), snapshot(module))


def flip_a_weight(path: Path) -> None:
    content = path.read_bytes()
    weights = torch.load(path, weights_only=True)["state_dict"]["net.conv2.weight"]
    place = content.index(weights.numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("task", ["fit", "validate", "test"])
def test_the_trainer_refuses_a_damaged_file(task: str, checkpoint: Path, make_trainer: Fit) -> None:
    flip_a_weight(checkpoint)
    torch.load(checkpoint, weights_only=True)  # torch does not notice
    module = Classifier()
    before = snapshot(module)
    loaders = [fits.train_loader()] * (task == "fit") + [fits.val_loader()]
    with pytest.raises(ValueError, match="is damaged"):
        getattr(make_trainer(callback()), task)(module, *loaders, ckpt_path=checkpoint)
    assert same_state(snapshot(module), before)


def test_a_tensor_that_is_marked_as_a_folder_is_refused(checkpoint: Path) -> None:
    """PyTorch would read none of it, and give whatever is in memory."""
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    content = bytearray(checkpoint.read_bytes())
    start = zipfile.ZipFile(checkpoint).start_dir
    place = content.index(b"archive/data/3", start)  # the name, eight bytes behind the attributes
    content[place - 8] ^= 0x10
    assert check_damaged(checkpoint, bytes(content), expected)


def test_files_without_checksums_load(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, checkpoint)
    finally:
        torch.serialization.set_crc32_options(before)
    assert widths(load_pruned(Classifier(), checkpoint)) == ALL_HALVED


def test_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("somewhere")}, tmp_path / "objects.pt")
    with pytest.raises(ValueError, match="weights_only=True") as caught:
        load_pruned(Classifier(), tmp_path / "objects.pt")
    assert "save the weights alone" in str(caught.value)


# -- full disks and half-written records ---------------------------------------------------------------
@pytest.mark.parametrize("function", ["write_bytes", "mkdir"])
def test_a_full_disk_does_not_stop_training(
    function: str, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, function, full)
    module, pruning = Classifier(), callback(report_dir=tmp_path / "report")
    with pytest.warns(UserWarning, match="could not be written.*No space left on device"):
        fit(module, [pruning])
    assert widths(module) == ALL_HALVED
    assert module.steps == STEPS
    assert len(pruning.steps) == 1
    assert not list(tmp_path.rglob("*.json"))


class FullDisk(TorchCheckpointIO):
    """Has no room for the network before a cut."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if "uncut" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().save_checkpoint(checkpoint, path, storage_options)


def test_training_goes_on_where_the_uncut_network_cannot_be_saved(fit: Fit, tmp_path: Path) -> None:
    module, checkpoints = Classifier(), ModelCheckpoint(tmp_path / "files")
    with pytest.warns(UserWarning, match="before the cut could not be saved to .*No space left"):
        fit(module, [callback(), checkpoints], enable_checkpointing=True, plugins=[FullDisk()])
    assert widths(module) == ALL_HALVED
    assert module.steps == STEPS
    assert not list(tmp_path.rglob("uncut*"))


def test_a_half_written_draft_is_removed(fit: Fit, tmp_path: Path, monkeypatch) -> None:
    pruning = callback()
    fit(Classifier(), [pruning])
    write = Path.write_bytes

    def half(self: Path, content: bytes, *_: Any, **__: Any) -> None:
        write(self, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = (write_step(pruning.steps[0], tmp_path / "report") / "report.json").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        write_step(pruning.steps[0], tmp_path / "report")
    (record,) = (tmp_path / "report" / "cut_after_epoch_0").iterdir()
    assert record.read_bytes() == old


@pytest.mark.parametrize("old", [True, False])
def test_a_kill_leaves_no_half_record(old: bool, fit: Fit, tmp_path: Path, monkeypatch) -> None:
    pruning, folder = callback(), tmp_path / "report"
    fit(Classifier(), [pruning])
    if old:
        write_step(pruning.steps[0], folder)
    write = Path.write_bytes

    def half(self: Path, content: bytes, *_: Any, **__: Any) -> None:
        write(self, content[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Path, "write_bytes", half)
    assert in_child(lambda: write_step(pruning.steps[0], folder)) == -signal.SIGKILL
    monkeypatch.undo()
    records = list(folder.rglob("report.json"))
    assert len(records) == old
    assert all(json.loads(record.read_text())["epoch"] == 0 for record in records)
    write_step(pruning.steps[0], folder)  # over what the killed process left
    # Beside a draft that nobody takes for a record.
    assert [file.parent.name for file in find_records(folder)] == ["cut_after_epoch_0"]
