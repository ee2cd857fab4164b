"""The bench runs every method, meets the FLOPs it was given, and does nothing twice."""

import copy
import csv
from pathlib import Path

import bench
import bench_results
import pytest
import torch
from helpers import image_files
from helpers.networks import resnet8
from torch import nn

pytestmark = pytest.mark.recipes

TARGET = 0.6


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    image_files.write_folder(tmp_path / "data" / "train", each=24)
    image_files.write_folder(tmp_path / "data" / "test", each=4, seed=50)
    torch.manual_seed(0)
    torch.save(resnet8(num_classes=3).state_dict(), tmp_path / "weights.pt")
    options = {
        "network": "helpers.networks.resnet8",
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


def row_flops(row: dict[str, str]) -> float:
    return float(row["flops"])


@pytest.mark.parametrize(
    ("options", "tuning"),
    [
        (["oneshot", "--epochs", "1"], "oneshot 1"),
        (["layerwise", "--layers", "2"], "layerwise 2"),
        (["none", "--lr", "0.02", "--teacher"], "none"),  # of tuning, which there is not
    ],
)
def test_the_choice_alone(arguments: list[str], tmp_path: Path, options: list[str], tuning: str) -> None:
    bench.main(["choice", *arguments, "--tuning", *options])
    found = rows(tmp_path)
    assert [row["method"] for row in found] == list(bench.CHOICE)
    assert len({(row["flops"], row["parameters"]) for row in found}) == 1  # equal widths
    assert {row["tuning"] for row in found} == {tuning}
    assert all((row["tuned"] == "") is (tuning == "none") for row in found)


def test_single_parts(arguments: list[str], tmp_path: Path) -> None:
    bench.main(["ablation", *arguments])
    found = {row["method"]: row for row in rows(tmp_path)}
    assert list(found) == list(bench.ABLATION)
    knees = {name for name in found if name.startswith("knee")}
    for name in found.keys() - knees:
        assert row_flops(found[name]) >= 1 / TARGET - 1e-3
    assert not any(row["tuned"] for row in found.values())


@pytest.mark.parametrize(
    ("options", "methods", "tuning", "epochs"),
    [
        (["none"], ["default", "paper", "l1", "random"], "none", "0.000"),
        (["oneshot", "--epochs", "1", "--lr", "0.02"], ["default"], "oneshot 1 lr 0.02", "1.000"),
        (["oneshot", "--epochs", "1", "--teacher"], ["control"], "oneshot 1 with teacher", "1.000"),
        (["layerwise", "--layers", "2"], ["default", "group norm"], "layerwise 2", "1.000"),
    ],
)
def test_the_whole(
    arguments: list[str],
    tmp_path: Path,
    options: list[str],
    methods: list[str],
    tuning: str,
    epochs: str,
) -> None:
    command = ["whole", *arguments, "--tuning", *options, "--methods", *methods]
    bench.main(command)
    found = {row["method"]: row for row in rows(tmp_path)}
    assert list(found) == methods
    for name, row in found.items():
        expected = 1.0 if name == "control" else 1 / TARGET
        assert row_flops(row) >= expected - 1e-3
        assert row_flops(row) <= 1.1 * expected
        assert (row["tuned"] == "") is (tuning == "none")
        assert (row["tuning"], row["epochs"]) == (tuning, epochs)
        assert (row["network"], row["captured"]) == ("resnet8", "36")
    bench.main(command)
    assert len(rows(tmp_path)) == len(methods)


def test_what_was_varied_makes_a_row_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    command = ["whole", *arguments, "--methods", "l1"]
    for extra in ([], ["--bf16"], ["--captured-share", "0.25"], ["--recovery-samples", "8"]):
        bench.main([*command, *extra])
    found = [(row["precision"], row["captured"]) for row in rows(tmp_path)]
    assert found == [("float32", "36"), ("bf16", "36"), ("float32", "18"), ("float32", "36, refit to 8")]


def test_tuning_has_a_control(arguments: list[str], tmp_path: Path) -> None:
    bench.main(["whole", *arguments, "--tuning", "oneshot", "--epochs", "1"])
    names = [row["method"] for row in rows(tmp_path)]
    assert names == [*bench.WHOLE, "group norm", "control"]


def test_lengths_and_rates_of_tuning_share_a_cut(arguments: list[str], tmp_path: Path) -> None:
    command = ["tuning", *arguments, "--methods", "default", "default, rescaled", "--teacher"]
    command += ["--epochs", "0.5", "2", "--lr", "0.01"]
    bench.main(command)
    bench.main([*command, "0.05"])  # the rates, of which one is known
    found = rows(tmp_path)
    for name in ("default", "default, rescaled"):
        mine = [row for row in found if row["method"] == name]
        assert [(row["tuning"], row["epochs"]) for row in mine] == [
            ("oneshot 0.5 with teacher", "0.500"),
            ("oneshot 2 with teacher", "2.000"),
            ("oneshot 0.5 lr 0.05 with teacher", "0.500"),
            ("oneshot 2 lr 0.05 with teacher", "2.000"),
        ]
        assert len({(row["cut"], row["flops"]) for row in mine}) == 1
        assert all(row["tuned"] for row in mine)


def test_a_length_that_cannot_be_had(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["tuning", *arguments, "--epochs", "1.5"])
    assert "each must be between 0 and 1, or whole" in capsys.readouterr().err


def test_rescaled_filters_give_the_same_outputs() -> None:
    torch.manual_seed(0)
    plain = resnet8(num_classes=3).double().eval()
    refitted = copy.deepcopy(plain)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for parameter in refitted.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    wanted = refitted(images)
    bench.rescale(refitted, plain)
    norms = [
        [
            layer.weight.flatten(1).norm(dim=1)
            for layer in network.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        for network in (plain, refitted)
    ]
    assert all(torch.allclose(a, b) for a, b in zip(*norms, strict=True))
    # The small constant of BatchNorm is not rescaled.
    torch.testing.assert_close(refitted(images), wanted, rtol=1e-3, atol=1e-3)


def test_an_unknown_row(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["choice", *arguments, "--methods", "l2"])
    assert "choice has no row 'l2', but: default, " in capsys.readouterr().err


def row_of(**found: object) -> dict[str, str]:
    row = {
        "table": "whole",
        "network": "resnet56",
        "tuning": "none",
        "precision": "float32",
        "captured": "4000",
        "target": "0.476",
        "method": "default",
        "flops": "2.1",
        "parameters": "1.6",
        "seconds": "10",
        "epochs": "0",
    }
    return row | {name: str(value) for name, value in found.items()}


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, cut in ((0, 90.0), (1, 92.0)):
        bench_results.write_row(tmp_path / "runs.csv", row_of(seed=seed, cut=cut))
    bench.main(["report", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    setting = "| whole | resnet56 | none | float32 | 4000 | 0.476 | default | "
    assert setting + "2.10x | 1.60x | 91.00 ± 1.41 | - | 10.00 ± 0.00 | 0 | 2 |" in printed
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "tuning.png").exists()


def test_accuracy_over_the_length_of_tuning(tmp_path: Path) -> None:
    found = [
        row_of(table="tuning", tuning=tuning, epochs=epochs, tuned=tuned, seed=seed, cut=90)
        for tuning, epochs, tuned, seed in (
            ("oneshot 1", 1, 91, 0),
            ("oneshot 0.25", 0.25, 90, 0),
            ("oneshot 0.25", 0.25, 92, 1),
            ("oneshot 8 lr 0.05 with teacher", 8, 93, 0),
        )
    ]
    for row in found:
        bench_results.write_row(tmp_path / "runs.csv", row)
    cells = {
        key: [row for row in found if tuple(row[name] for name in bench_results.SETTING) == key]
        for key in {tuple(row[name] for name in bench_results.SETTING) for row in found}
    }
    title = "resnet56 at 2.1x, float32, 4000 captured\n"
    assert bench_results.by_epochs(cells) == {
        f"{title}lr 0.01": {"default": [(0.25, 91.0, pytest.approx(2**0.5)), (1.0, 91.0, 0.0)]},
        f"{title}lr 0.05 with teacher": {"default": [(8.0, 93.0, 0.0)]},
    }
    bench.main(["report", "--out", str(tmp_path)])
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", ["--weights", "--data"])
def test_what_a_run_needs(
    arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = arguments.index(missing)
    with pytest.raises(SystemExit):
        bench.main(["whole", *arguments[:place], *arguments[place + 2 :]])
    assert f"{missing} is needed for whole" in capsys.readouterr().err
