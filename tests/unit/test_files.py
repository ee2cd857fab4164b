import zipfile
from pathlib import Path

import pytest
import torch

from acsp_lightning.files import atomic_write, verify_checksums


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.arange(64.0), "epoch": 3}, path)
    return path


def test_an_intact_file_passes(saved: Path) -> None:
    verify_checksums(saved)


def test_a_changed_byte_of_any_record_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        places = {
            entry.filename: whole.index(archive.read(entry), entry.header_offset)
            for entry in archive.infolist()
            if entry.file_size
        }
    assert len(places) > 2
    for place in places.values():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.pt is damaged.*BadZipFile"):
            verify_checksums(saved)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_ends_too_early_is_found(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="Use another copy, or an earlier checkpoint"):
        verify_checksums(saved)


def test_files_without_checksums_are_passed_over(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    verify_checksums(tmp_path / "old.pt")
    (tmp_path / "empty").write_bytes(b"")
    verify_checksums(tmp_path / "empty")


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_appears_at_the_end(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "table.txt"
    if before is not None:
        path.write_text(before)
    with atomic_write(path) as draft:
        draft.write_text("new")
        assert draft.parent == path.parent, "a rename must not cross file systems"
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "old"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "table.txt"
    if before is not None:
        path.write_text(before)

    def write_half() -> None:
        with atomic_write(path) as draft:
            draft.write_text("half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        write_half()
    assert (path.read_text() if path.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == (before is not None)


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(NotADirectoryError, match=r"nowhere to write a\.txt to"),
        atomic_write(tmp_path / "nowhere" / "a.txt"),
    ):
        pytest.fail("the body must not run")
    with pytest.raises(IsADirectoryError, match="is a folder"), atomic_write(tmp_path):
        pytest.fail("the body must not run")
