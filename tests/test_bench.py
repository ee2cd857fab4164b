"""The bench runs every method, meets the FLOPs it was given, and does nothing twice."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import made_up
import pytest
import torch

from acsp_lightning.zoo import resnet20

SCRIPT = Path(__file__).parents[1] / "recipes" / "bench.py"
TARGET = 0.6


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bench", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    made_up.write_folder(tmp_path / "data" / "train", each=24)
    made_up.write_folder(tmp_path / "data" / "test", each=4, seed=50)
    torch.manual_seed(0)
    torch.save(resnet20(num_classes=3).state_dict(), tmp_path / "weights.pt")
    options = {
        "network": "acsp_lightning.zoo.resnet20",
        "classes": 3,
        "weights": tmp_path / "weights.pt",
        "data": tmp_path / "data",
        "captured-share": 0.5,
        "batch-size": 8,
        "flops": TARGET,
        "seeds": 0,
        "out": tmp_path / "out",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_choice_alone(bench: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    bench.main(["choice", *arguments])
    found = rows(tmp_path)
    assert [row["method"] for row in found] == list(bench.CRITERIA)
    assert len({(row["flops"], row["parameters"]) for row in found}) == 1  # equal widths
    assert all(row["tuned"] == "" for row in found)


@pytest.mark.parametrize(
    "tuning", [["none"], ["oneshot", "--epochs", "1"], ["layerwise", "--layers", "5"]]
)
def test_the_whole(bench: ModuleType, arguments: list[str], tmp_path: Path, tuning: list[str]) -> None:
    others = {"none": ["paper", "l1"], "oneshot": ["control"], "layerwise": ["group norm"]}
    methods = ["default", *others[tuning[0]]]
    command = ["whole", *arguments, "--tuning", *tuning, "--methods", *methods]
    bench.main(command)
    found = {row["method"]: row for row in rows(tmp_path)}
    assert list(found) == methods
    for name, row in found.items():
        expected = 1.0 if name == "control" else 1 / TARGET
        assert float(row["flops"]) >= expected - 1e-3
        assert float(row["flops"]) <= 1.1 * expected
        assert (row["tuned"] == "") is (tuning == ["none"])
    assert {row["epochs"] for row in found.values()} == {
        {"none": "0", "oneshot": "1"}.get(tuning[0], "1.000")
    }
    bench.main(command)
    assert len(rows(tmp_path)) == len(methods)


def test_the_report(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, cut in ((0, 90.0), (1, 92.0)):
        row = dict.fromkeys(bench.COLUMNS, "")
        row |= {"table": "whole", "method": "default", "tuning": "none", "target": "0.476"}
        row |= {"seed": str(seed), "flops": "2.1", "cut": str(cut), "seconds": "10"}
        bench.write_row(tmp_path / "runs.csv", row)
    bench.main(["report", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| whole | none | default | 2.10x | 91.00 ± 1.41 | - | 10.00 ± 0.00 | - | 2 |" in printed
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", ["--weights", "--data"])
def test_what_a_run_needs(
    bench: ModuleType, arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = arguments.index(missing)
    with pytest.raises(SystemExit):
        bench.main(["whole", *arguments[:place], *arguments[place + 2 :]])
    assert f"{missing} is needed for whole" in capsys.readouterr().err
