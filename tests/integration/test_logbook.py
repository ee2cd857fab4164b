"""What loggers are given, read back from what they wrote."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers import clockwork
from helpers.fits import ALL_HALVED, Classifier, Fit, Scripted, callback, only_whole
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from acsp_lightning import Guard, SelectionConfig
from acsp_lightning.cli import main

LAYERS = {name: width for name, width in ALL_HALVED.items() if name != "net.fc2"}
FIGURES = {"acsp/plots/channels", "acsp/plots/flops"}


def logged_fit(fit: Fit, *loggers: Logger, **options: Any) -> tuple[Any, pl.Trainer]:
    pruning = callback(1, report_plots=True, **options)
    trainer = fit(Classifier(), [pruning], logger=list(loggers), log_every_n_steps=1)
    (step,) = pruning.steps
    expected = {f"acsp/channels/{name}": width for name, width in LAYERS.items()}
    expected |= {
        "acsp/flops": step.after.flops,
        "acsp/parameters": step.after.parameters,
        "acsp/accuracy_straight_after": pytest.approx(step.accuracy_after),
    }
    return expected, trainer


def test_csv(fit: Fit, tmp_path: Path) -> None:
    expected, trainer = logged_fit(fit, CSVLogger(tmp_path))
    with Path(str(trainer.log_dir), "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if row["acsp/flops"]]
    assert {name: float(row[name]) for name in expected} == expected
    assert int(row["step"]) == 8  # two epochs of four steps came before


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard(fit: Fit, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected, trainer = logged_fit(fit, TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    for name, value in expected.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (8, value)
    assert set(events.Tags()["images"]) >= FIGURES
    (plot,) = events.Images("acsp/plots/channels")
    assert plot.encoded_image_string[1:4] == b"PNG"


def test_weights_and_biases_offline(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    expected, trainer = logged_fit(fit, WandbLogger(save_dir=tmp_path, offline=True))
    run = trainer.loggers[0].experiment
    summary = dict(run.summary)
    plots = list(Path(run.dir).rglob("*.png"))
    wandb.finish()
    assert {name: summary[name] for name in expected} == expected
    assert len(plots) >= len(FIGURES)


class Homeless(CSVLogger):
    """Its folder is gone when a cut comes."""

    gone = False

    @property
    def log_dir(self) -> str:
        if self.gone:
            raise RuntimeError("no folder")
        return super().log_dir


class Mover(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Homeless.gone = True


def test_a_logger_without_a_folder_costs_a_warning(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Homeless, "gone", False)
    module = Classifier()
    with pytest.warns(UserWarning, match="report of the cut could not be given a folder .*no folder"):
        fit(module, [Mover(), callback()], logger=Homeless(tmp_path), log_every_n_steps=1)
    assert module.steps == 12

    Homeless.gone = False
    clockwork.set_clock(monkeypatch)
    timed = callback(selection=SelectionConfig(latency=0.9, curve="damage"))
    with (
        pytest.warns(UserWarning, match="Times of layers could not be given a folder .*no folder"),
        pytest.warns(UserWarning, match="report of the cut could not be given a folder"),
    ):
        fit(Classifier(), [Mover(), timed], logger=Homeless(tmp_path), log_every_n_steps=1)
    assert timed.steps[0].times is not None

    Homeless.gone = False
    own = callback(report_dir=tmp_path / "mine")
    fit(Classifier(), [Mover(), own], logger=Homeless(tmp_path), log_every_n_steps=1)
    assert (tmp_path / "mine" / "cut_after_epoch_0" / "report.json").is_file()


class Broken(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "acsp/flops" in metrics:
            raise RuntimeError("no more room")
        super().log_metrics(metrics, step)


def test_a_logger_that_raises_costs_a_warning(fit: Fit, tmp_path: Path) -> None:
    good = CSVLogger(tmp_path / "good")
    with pytest.warns(UserWarning, match="Broken did not take the figures .*no more room"):
        logged_fit(fit, Broken(tmp_path / "bad"), good)
    assert "acsp/flops" in Path(good.log_dir, "metrics.csv").read_text()


def test_no_plots_where_none_are_drawn(fit: Fit, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = fit(Classifier(), [callback()], logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert "acsp/flops" in events.Tags()["scalars"]
    assert not events.Tags()["images"]


def test_a_cut_that_is_undone_is_logged_as_undone(fit: Fit, tmp_path: Path) -> None:
    pruning = callback(1, guard=Guard(0.1, "quality"))
    trainer = fit(
        Scripted(only_whole), [pruning], logger=CSVLogger(tmp_path), log_every_n_steps=1, max_epochs=6
    )
    with Path(str(trainer.log_dir), "metrics.csv").open() as file:
        flops = [float(row["acsp/flops"]) for row in csv.DictReader(file) if row["acsp/flops"]]
    whole = pruning.steps[0].before.flops
    cut = [step.after.flops for step in pruning.steps]
    assert flops == [cut[0], whole, cut[1], whole]


def test_a_record_that_cannot_be_drawn_does_not_stop_training(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no font")

    monkeypatch.setattr("acsp_lightning.report.files.step_figures", broken)
    pruning, module = callback(report_plots=True, report_dir=tmp_path), Classifier()
    with pytest.warns(UserWarning, match="report of the cut could not be drawn in .*no font"):
        fit(module, [pruning])
    assert module.steps == 12
    assert (tmp_path / "cut_after_epoch_0" / "report.json").is_file()


def test_views_that_cannot_be_made_do_not_stop_training(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no map")

    monkeypatch.setattr("acsp_lightning.selection.proposal.map_groups", broken)
    pruning, module = callback(report_plots=True, report_dir=tmp_path), Classifier()
    with pytest.warns(UserWarning, match="report of the cut could not be prepared .*no map"):
        fit(module, [pruning])
    assert module.steps == 12
    assert pruning.steps[0].maps == {}


def test_plots_can_be_drawn_later(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Classifier(), [callback(report_plots=False, report_dir=tmp_path)])
    folder = tmp_path / "cut_after_epoch_0"
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    main(["report", str(tmp_path)])
    assert {"layer.net.conv1.png", "layer.net.conv2.png", "layer.net.fc1.png"} <= {
        path.name for path in folder.iterdir()
    }
