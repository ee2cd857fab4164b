"""The folder of a cut."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.records import selection, step, viewed

from acsp_lightning import PruningPlan, PruningStep
from acsp_lightning.functional import ChannelSelection
from acsp_lightning.report import draw_step, find_records, read_step, write_step
from acsp_lightning.selection.path import NetworkCurve


def test_record_is_plain_json(tmp_path: Path) -> None:
    folder = write_step(step(), tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder" / "cut_after_epoch_4"
    text = (folder / "report.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    chosen = selection()
    assert found["epoch"] == 4
    assert found["samples"] == 18
    assert found["layers"] == {"conv": [6, 3]}
    assert found["before"] == {
        "parameters": 6000,
        "flops": 60_000,
        "by_layer": {"conv": 60_000},
        "unsupported": {},
        "unused": {},
    }
    assert found["accuracy_after"] is None
    assert PruningPlan.from_dict(found["plan"]).kept("conv", "out") == tuple(chosen.kept.tolist())
    record = found["selections"]["conv"]
    assert record["coverage"] == chosen.coverage.tolist()
    assert record["reason"] == "fixed share of the channels"
    assert record["knee"] is None
    assert set(record) == set(ChannelSelection.__slots__)


def test_writing_again_replaces_the_record(tmp_path: Path) -> None:
    write_step(step(), tmp_path)
    folder = write_step(step(accuracy=0.25), tmp_path)
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["accuracy_before"] == 0.25


def test_a_record_reads_as_what_was_written(tmp_path: Path) -> None:
    written = viewed()
    found = read_step(write_step(written, tmp_path) / "report.json")
    assert type(found) is PruningStep
    assert found.plan == written.plan
    assert found.before == written.before
    assert found.comparison == written.comparison
    assert found.network == written.network
    assert found.verdict == written.verdict
    assert found.latency == written.latency
    assert found.layers == written.layers
    for name in ("ks", "coverage", "mss", "medoids", "labels", "kept", "weights"):
        one, other = (getattr(s.selections["conv"], name) for s in (found, written))
        assert torch.equal(one, other.to(one))
        assert one.is_floating_point() == other.is_floating_point()
    assert found.selections["conv"].reason is written.selections["conv"].reason
    one, other = found.maps["conv"], written.maps["conv"]
    assert torch.equal(one.places, other.places)
    assert one.classes.ranges == other.classes.ranges
    assert torch.equal(one.classes.before.nan_to_num(9), other.classes.before.nan_to_num(9))


def test_two_cuts_of_one_epoch_have_a_folder_each(tmp_path: Path) -> None:
    first, second = step(), replace(step(), plan=PruningPlan())
    folders = [write_step(found, tmp_path) for found in (first, second, first, second)]
    names = ["cut_after_epoch_4", "cut_after_epoch_4_2"]
    assert [folder.name for folder in folders] == names * 2
    for folder, found in zip(folders, (first, second), strict=False):
        assert read_step(folder / "report.json").plan == found.plan


def test_plots_of_a_former_cut_are_removed(tmp_path: Path) -> None:
    folder = write_step(viewed(), tmp_path)
    draw_step(viewed(), folder)
    assert (folder / "layer.conv.png").exists()
    draw_step(step(), folder)
    assert not (folder / "layer.conv.png").exists()
    assert (folder / "channels.png").exists()


def test_what_is_not_finite_reads_as_nan(tmp_path: Path) -> None:
    odd = replace(viewed(), network=NetworkCurve((2.0, 1.0), (0.0, math.inf), None))
    found = read_step(write_step(odd, tmp_path) / "report.json")
    assert found.network is not None
    assert math.isnan(found.network.damage[1])


def test_records_from_before_a_field_was_added_are_read(tmp_path: Path) -> None:
    path = write_step(step(), tmp_path) / "report.json"
    data = json.loads(path.read_text())
    del data["maps"], data["latency"]
    path.write_text(json.dumps(data))
    assert read_step(path).maps == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("samples"), "PruningStep has the fields .* another version"),
        (lambda d: d.update(samples="many"), r"PruningStep\.samples is 'many'"),
        (lambda d: d["selections"]["conv"].update(reason="a whim"), r"\['conv'\]\.reason is 'a whim'"),
        (lambda d: d["selections"]["conv"].update(kept=["a"]), "kept holds no array of numbers"),
        (lambda d: d["layers"].update(conv=[1]), r"layers\['conv'\] is '\[1\]'"),
        (lambda d: d["plan"]["cuts"][0].update(kept=[5, 5]), "ascending"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    path = write_step(step(), tmp_path) / "report.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"report\.json is no record of a cut: .*{message}"):
        read_step(path)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = write_step(step(), tmp_path) / "report.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"report\.json is no record of a cut"):
        read_step(path)


def test_records_are_found_in_the_order_of_the_cuts(tmp_path: Path) -> None:
    for epoch in (10, 9):
        write_step(step(epoch), tmp_path / "run" / "acsp")
    names = ["cut_after_epoch_9", "cut_after_epoch_10"]
    assert [path.parent.name for path in find_records(tmp_path)] == names
    one = tmp_path / "run" / "acsp" / "cut_after_epoch_9"
    assert find_records(one) == find_records(one / "report.json") == [one / "report.json"]


def test_a_run_without_cuts_and_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no report\.json in .*nothing was cut"):
        find_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give the folder of a run"):
        find_records(tmp_path / "nowhere")


def test_plots_and_page_are_the_same_from_the_record(tmp_path: Path) -> None:
    folder = write_step(viewed(), tmp_path)
    page = draw_step(viewed(), folder)
    assert page == folder / "report.html"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"report.html", "report.json", "channels.png", "flops.png", "network.png"} <= set(first)
    assert all(content[1:4] == b"PNG" for name, content in first.items() if name.endswith(".png"))
    again = tmp_path / "again"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("*.png", "*.html"))
    draw_step(read_step(again / "report.json"), again)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first


def test_a_preview_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert write_step(replace(step(), epoch=None), tmp_path) == tmp_path / "preview"


def test_no_display_is_needed(tmp_path: Path) -> None:
    write_step(viewed(), tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    command = [Path(sys.executable).parent / "acsp-lightning", "report", tmp_path]
    subprocess.run(command, env={**environment, "MPLBACKEND": "TkAgg"}, check=True, timeout=120)
    assert (tmp_path / "cut_after_epoch_4" / "report.html").is_file()
