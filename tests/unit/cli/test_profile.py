import json
from pathlib import Path
from typing import Any

import pytest
from helpers import clockwork
from helpers.commands import RECIPE

from acsp_lightning.cli.profile import check_target, write_profile
from acsp_lightning.measure import latency
from acsp_lightning.measure.time_table import Profile, StoredTimes

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls methods of jsonargparse that 4.49 deprecates.
    r"ignore:\s*(By default only one Jsonargparse|[\s\S]*was\s+deprecated\s+in\s+v4\.49)",
    # What is cut here is hardly trained.
    "ignore:.*which is chance among",
)

QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)


def test_times_that_are_profiled_decide_a_preview(acsp, tmp_path: Path, capsys, monkeypatch) -> None:
    acsp("profile", "--config", RECIPE, *QUICK, "--out=there/times.json")
    printed = capsys.readouterr().out
    assert "latency_table=there/times.json" in printed
    assert "(batch 1, cpu, " in printed
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    stored = Profile.read(tmp_path / "there" / "times.json")
    assert len(stored.networks) > 2

    def refuse(*_: Any) -> float:
        raise AssertionError("nothing is timed here")

    monkeypatch.setitem(latency.TIMERS, "cpu", refuse)
    table = "--trainer.callbacks.latency_table=there/times.json"
    acsp("preview", "--config", RECIPE, *QUICK, table, "--latency=0.5")
    times = json.loads((tmp_path / "preview" / "report.json").read_text())["times"]
    assert times["table"] == "there/times.json"
    assert times["predicted"] == pytest.approx(0.5, rel=0.05)
    assert " ms " in capsys.readouterr().out


def test_a_preview_in_time_keeps_the_times_of_layers(acsp, tmp_path: Path, capsys) -> None:
    acsp("preview", "--config", RECIPE, *QUICK, "--latency=0.5")
    printed = capsys.readouterr().out
    assert "latency=0.5 asks for" in printed
    assert "Layers that hold the network back" in printed
    assert StoredTimes.read(tmp_path / "preview" / "layer_times.json").layers


def test_times_of_exported_networks(acsp, tmp_path: Path, capsys, monkeypatch) -> None:
    """On the clock without noise; that of ONNX Runtime itself is tested where it is used."""
    import onnxruntime

    monkeypatch.setitem(latency.TIMERS, "cpu", lambda run, arguments: float(len(run(*arguments))) * 1e-3)
    quick = [*QUICK, "--trainer.callbacks.round_to=16"]  # every width is exported
    words = [*quick, "--runtime=onnxruntime", "--out=times.json"]
    with pytest.raises(SystemExit):
        acsp("profile", "--config", RECIPE, *words, "--trainer.callbacks.latency_at.compiled=true")
    assert "leave everything but batch_size out of latency_at" in capsys.readouterr().err
    acsp("profile", "--config", RECIPE, *words)
    assert "onnxruntime on cpu" in capsys.readouterr().out
    stored = Profile.read(tmp_path / "times.json")
    assert stored.conditions["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert set(stored.layers.values()) == {1e-3}
    table = "--trainer.callbacks.latency_table=times.json"
    acsp("preview", "--config", RECIPE, *quick, table, "--latency=1.0")
    assert json.loads((tmp_path / "preview" / "report.json").read_text())["times"]["predicted"] == 1.0


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "times.json"):
        with pytest.raises(ValueError, match=r"cannot be written \(.*\); set out="):
            check_target(str(out))
    check_target(str(tmp_path / "new" / "times.json"))
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_batch_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation loader is empty"):
        write_profile(None, str(tmp_path / "times.json"))
