import json
from pathlib import Path

import pytest
from helpers.commands import RECIPE, SHORT

# LightningCLI 2.6 calls methods of jsonargparse that 4.49 deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|[\s\S]*was\s+deprecated\s+in\s+v4\.49)"
)


def test_a_preview_shows_a_cut_and_leaves_nothing_else(acsp, tmp_path: Path, capsys) -> None:
    acsp("preview", "--config", RECIPE, "--trainer.accelerator=cpu", "--flops=0.5")
    printed = capsys.readouterr().out
    assert "Preview: what a cut would do" in printed
    assert "network.features.stage1.conv1" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["preview"]
    assert {"report.html", "report.json", "table.txt"} <= {
        path.name for path in (tmp_path / "preview").iterdir()
    }
    record = json.loads((tmp_path / "preview" / "report.json").read_text())
    assert record["epoch"] is None
    assert record["after"]["flops"] <= 0.5 * record["before"]["flops"]


def test_a_preview_of_a_checkpoint(acsp, tmp_path: Path, capsys) -> None:
    acsp("fit", "--config", RECIPE, *SHORT)
    (checkpoint,) = (tmp_path / "lightning_logs").rglob("*.ckpt")
    options = ["--trainer.accelerator=cpu", "--trainer.callbacks=null", f"--ckpt_path={checkpoint}"]
    acsp("preview", "--config", RECIPE, *options, "--keep=0.25", "--out=there")
    layers = json.loads((tmp_path / "there" / "preview" / "report.json").read_text())["layers"]
    assert all(after == before // 4 for before, after in layers.values())


def test_a_preview_that_cannot_be(acsp, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both fix the volume"):
        acsp("preview", "--config", RECIPE, "--flops=0.5", "--keep=0.5")
    with pytest.raises(ValueError, match="There was no validation batch to look at"):
        acsp("preview", "--config", RECIPE, "--trainer.limit_val_batches=0")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match="taken/preview cannot be made or written to"):
        acsp("preview", "--config", RECIPE, "--out=taken")
