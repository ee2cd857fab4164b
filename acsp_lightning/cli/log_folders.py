"""Folders of loggers: a run that fails before its first batch leaves none behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from acsp_lightning.trainer.checks import callbacks_of

# Files written before the first batch; a folder with anything else in it is kept.
EARLY = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")


@contextmanager
def empty_folders_removed(trainer: pl.Trainer) -> Iterator[None]:
    """Remove the folders that loggers created if an error occurs before the first batch."""
    begun = _Begun()
    callbacks_of(trainer).append(begun)
    new = _folders_to_come(trainer)
    try:
        yield
    except Exception:
        if not begun.yes:
            for folder in new:
                _remove(folder)
        raise
    finally:
        callbacks_of(trainer).remove(begun)


class _Begun(pl.Callback):
    """Records whether a batch was reached."""

    yes = False

    def on_train_batch_start(self, *_: Any) -> None:
        self.yes = True

    on_test_batch_start = on_predict_batch_start = on_train_batch_start  # type: ignore[assignment]

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.yes = self.yes or not trainer.sanity_checking


def _folders_to_come(trainer: pl.Trainer) -> list[Path]:
    """Folders that local loggers will create, and their missing parents."""
    if not trainer.is_global_zero:
        return []
    found: list[Path] = []
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            folder = Path(logger.log_dir)
            found += [path for path in (folder, *folder.parents) if not path.exists()]
    return found


def _remove(folder: Path) -> None:
    """Remove a folder if it holds only files written before the first batch."""
    if not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(path.is_file() and any(path.match(pattern) for pattern in EARLY) for path in files):
        for path in files:
            path.unlink()
        folder.rmdir()
