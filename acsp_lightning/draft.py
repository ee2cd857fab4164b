"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
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
