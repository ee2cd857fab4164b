import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import RECIPE, SHORT, from_own_command_line, from_python
from helpers.records import step

from acsp_lightning.cli.preview import write_preview

pytestmark = [
    # LightningCLI 2.6 calls methods of jsonargparse that 4.49 deprecates.
    pytest.mark.filterwarnings(
        r"ignore:\s*(By default only one Jsonargparse|[\s\S]*was\s+deprecated\s+in\s+v4\.49)"
    ),
    # What is cut here is hardly trained.
    pytest.mark.filterwarnings("ignore:.*which is chance among"),
]


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


def test_several_shares_without_a_path_are_refused_before_validation(acsp, capsys) -> None:
    options = ["--trainer.accelerator=cpu", "--trainer.callbacks.selection.curve=coverage"]
    with pytest.raises(SystemExit):
        acsp("preview", "--config", RECIPE, *options, "--flops", "0.8", "0.5")
    printed = capsys.readouterr()
    assert "selection.curve='coverage' has none" in printed.err
    assert "Validat" not in printed.out + printed.err
    acsp("preview", "--config", RECIPE, *options, "--flops", "0.5")


def test_a_preview_of_a_checkpoint(acsp, tmp_path: Path, capsys) -> None:
    acsp("fit", "--config", RECIPE, *SHORT)
    (checkpoint,) = (tmp_path / "lightning_logs").rglob("*.ckpt")
    options = ["--trainer.accelerator=cpu", "--trainer.callbacks=null", f"--ckpt_path={checkpoint}"]
    acsp("preview", "--config", RECIPE, *options, "--keep=0.25", "--out=there")
    layers = json.loads((tmp_path / "there" / "preview" / "report.json").read_text())["layers"]
    assert all(after == before // 4 for before, after in layers.values())


# -- what people have --------------------------------------------------------------------------------
def previewed(out: Path) -> dict[str, Any]:
    layers = json.loads((out / "preview" / "report.json").read_text())["layers"]
    return dict(layers)


def test_a_preview_from_the_configuration_that_a_run_left(acsp, tmp_path: Path) -> None:
    acsp("fit", "--config", RECIPE, *SHORT)
    (config,) = (tmp_path / "lightning_logs").rglob("config.yaml")
    (checkpoint,) = (tmp_path / "lightning_logs").rglob("*.ckpt")
    acsp("preview", "--config", config, f"--ckpt_path={checkpoint}", "--keep=0.25", "--out=named")
    acsp("preview", "--ckpt_path", checkpoint, "--keep=0.25", "--out=found")
    assert previewed(tmp_path / "named") == previewed(tmp_path / "found")
    assert all(after == before // 4 for before, after in previewed(tmp_path / "found").values())


def test_a_preview_of_a_checkpoint_from_python(acsp, own: str, tmp_path: Path, capfd) -> None:
    checkpoint = from_python(own, tmp_path / "run")
    options = ["--trainer.accelerator=cpu", "--keep=0.5"]
    acsp("preview", f"--model={own}.Small", f"--data={own}.Data", f"--ckpt_path={checkpoint}", *options)
    assert previewed(tmp_path) == {"net.0": [6, 3]}
    acsp("preview", f"--model={own}.SmallWithData", f"--ckpt_path={checkpoint}", *options, "--out=a")
    assert previewed(tmp_path / "a") == {"net.0": [6, 3]}
    capfd.readouterr()
    for words, wanted in (
        ([], "--model=my_module.MyModel --data=my_module.MyData"),
        ([f"--model={own}.Small"], f"--model={own}.Small --data=my_module.MyData"),
        ([f"--model={own}.Smal"], f"the module '{own}' has no class 'Smal'"),
    ):
        with pytest.raises(SystemExit) as end:
            acsp("preview", f"--ckpt_path={checkpoint}", *words)
        assert end.value.code == 2
        error = capfd.readouterr().err.rpartition("acsp-lightning preview: error: ")[2]
        assert wanted in error


def test_a_preview_of_a_run_with_fixed_classes(
    acsp, own: str, tmp_path: Path, capfd, monkeypatch
) -> None:
    checkpoint = from_own_command_line(own, tmp_path / "run", monkeypatch)
    with pytest.raises(SystemExit) as end:
        acsp("preview", f"--ckpt_path={checkpoint}", "--keep=0.5")
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert "has a model and a data without class_path" in error
    command = error.rpartition("acsp-lightning ")[2].split()
    assert command[-2:] == ["--model=my_module.MyModel", "--data=my_module.MyData"]
    acsp(*command[:-2], f"--model={own}.Small", f"--data={own}.Data")
    assert previewed(tmp_path) == {"net.0": [6, 3]}
    record = json.loads((tmp_path / "preview" / "report.json").read_text())
    assert record["samples"] == 128


def test_a_preview_that_cannot_be(acsp, tmp_path: Path, capfd) -> None:
    (tmp_path / "taken").write_text("a file")
    for words, message in (
        (["--flops=0.5", "--keep=0.5"], "both fix the volume"),
        (["--trainer.limit_val_batches=0"], "There was no validation batch to look at"),
        (["--out=taken"], "taken/preview cannot be made or written to"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt does not exist."),
    ):
        with pytest.raises(SystemExit) as end:
            acsp("preview", "--config", RECIPE, "--trainer.accelerator=cpu", *words)
        assert end.value.code == 2
        assert message in capfd.readouterr().err.rpartition("acsp-lightning preview: error: ")[2]


def test_a_checkpoint_that_is_not_there_is_the_first_thing_said(acsp, capfd) -> None:
    with pytest.raises(SystemExit):
        acsp("preview", "--ckpt_path", "nowhere.ckpt")
    said = capfd.readouterr().err.rpartition("acsp-lightning preview: error: ")[2]
    assert said == "nowhere.ckpt does not exist.\n"


def test_a_preview_says_what_was_decided_about_residual_sums(tmp_path: Path) -> None:
    (tmp_path / "preview").mkdir()
    sums = "Residual sums are <cut>."
    printed = write_preview(replace(step(), epoch=None, sums=sums), str(tmp_path))
    assert f"\n\n{sums}\n\n" in printed
    page = (tmp_path / "preview" / "report.html").read_text()
    assert "<p>Residual sums are &lt;cut&gt;.</p>" in page
