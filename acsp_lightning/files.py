"""Files that appear whole or not at all, and that are checked before they are read."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

# Of a zip archive's entry: PyTorch reads no bytes of a "folder", and gives whatever was in memory.
FOLDER = 0x10


def verify_checksums(path: str | PathLike[str]) -> None:
    """Compare a file that ``torch.save`` wrote with the checksums in it; torch.load does not.

    Files in torch's old format, and those written with checksums turned off, have nothing to compare.

    Raises:
        ValueError: if the file is cut short, or a byte of it has changed.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.external_attr & FOLDER:
                        raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
                    if entry.CRC:
                        _read_through(archive, entry)
        except Exception as error:
            raise ValueError(
                f"{path} is damaged: it is incomplete, or its bytes have changed since it was written "
                f"({type(error).__name__}: {error}). Use another copy, or an earlier checkpoint."
            ) from error


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as content:
        while content.read(1 << 20):
            pass


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for the body to write to; at its end this file takes the place of ``path``.

    If the body raises, nothing of it is left, and what was at ``path`` is still there.

    Raises:
        OSError: if ``path`` is a folder or its folder does not exist, or nothing can be written there.
    """
    if not path.parent.is_dir():
        raise NotADirectoryError(f"There is no folder {path.parent} to write {path.name} to; make it.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
