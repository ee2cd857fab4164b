from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.fits import Classifier, Fit, train_loader, val_loader
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from acsp_lightning.cli.log_folders import empty_folders_removed


class FailingError(Exception):
    pass


class Failing(Classifier):
    """Fails at one moment of a fit."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment = moment

    def stop(self, moment: str) -> None:
        if moment == self.moment:
            raise FailingError(moment)

    def on_fit_start(self) -> None:
        self.logger.log_hyperparams({"lr": 0.1})
        self.logger.save()
        self.stop("before the first batch")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.stop("in the first batch")


def failed(make_trainer: Fit, folder: Path, moment: str, kind: Any) -> pl.Trainer:
    logger = kind(folder / "logs", name="run")
    trainer = make_trainer(logger=logger, log_every_n_steps=1)
    before = list(trainer.callbacks)
    with pytest.raises(FailingError, match=moment), empty_folders_removed(trainer):
        trainer.fit(Failing(moment), train_loader(), val_loader())
    assert trainer.callbacks == before
    return trainer


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_a_run_that_never_began_leaves_no_folder(make_trainer: Fit, tmp_path: Path, kind: Any) -> None:
    (tmp_path / "mine.txt").write_text("here before")
    failed(make_trainer, tmp_path, "before the first batch", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_a_run_that_has_begun_keeps_its_folder(make_trainer: Fit, tmp_path: Path, kind: Any) -> None:
    trainer = failed(make_trainer, tmp_path, "in the first batch", kind)
    assert Path(trainer.logger.log_dir).is_dir()


def test_folders_with_files_of_others_stay(make_trainer: Fit, tmp_path: Path) -> None:
    trainer = make_trainer(logger=CSVLogger(tmp_path / "logs", name="run"))
    folder = Path(trainer.logger.log_dir)

    def fail() -> None:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("a: 1")
        (folder / "notes.txt").write_text("by hand")
        raise FailingError

    with pytest.raises(FailingError), empty_folders_removed(trainer):
        fail()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "notes.txt"]


def test_folders_that_were_there_before_stay(make_trainer: Fit, tmp_path: Path) -> None:
    (tmp_path / "logs" / "run").mkdir(parents=True)
    failed(make_trainer, tmp_path, "before the first batch", CSVLogger)
    assert list((tmp_path / "logs").iterdir()) == [tmp_path / "logs" / "run"]
