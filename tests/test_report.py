import json
import re
from pathlib import Path

import pytest
import torch

from acsp_lightning import Complexity, PruningPlan, PruningStep, SelectionConfig
from acsp_lightning.evidence import Comparison
from acsp_lightning.functional import ChannelSelection, select_channels
from acsp_lightning.report import step_table, summary_table, write_step
from acsp_lightning.structure.plan import SideCut


def selection() -> ChannelSelection:
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    return select_channels(torch.cdist(points, points), SelectionConfig(keep=0.5))


def complexity(parameters: int, flops: int) -> Complexity:
    return Complexity(parameters, flops, {"conv": flops}, {})


def step(epoch: int = 4, before: int = 6, after: int = 3, accuracy: float | None = 0.75) -> PruningStep:
    chosen = selection()
    return PruningStep(
        epoch=epoch,
        plan=PruningPlan((SideCut("conv", "out", 6, tuple(chosen.kept.tolist())),)),
        selections={"conv": chosen},
        layers={"conv": (before, after)},
        before=complexity(before * 1000, before * 10_000),
        after=complexity(after * 1000, after * 10_000),
        accuracy_before=accuracy,
        accuracy_after=None,
        samples=18,
        comparison=Comparison(classes=3, unseen=0, class_pairs=3, sampling_error=0.0),
    )


def rows(table: str) -> list[list[str]]:
    """Cells of the header and the body, without title, rules and caption."""
    _, *lines = table.splitlines()
    lines = [line.strip() for line in lines if line.strip(" ─") and not line.startswith("not in the")]
    return [re.split(r" {2,}", line) for line in lines]


def test_table_of_one_cut() -> None:
    table = step_table(step())
    assert table.startswith("Cut after epoch 4")
    assert rows(table) == [
        ["before", "straight after"],
        ["conv", "6", "3"],
        ["parameters", "6,000", "3,000 (2.00x less)"],
        ["FLOPs (fvcore)", "60,000", "30,000 (2.00x less)"],
        ["accuracy", "75.00%", "-"],
    ]


def test_table_of_a_run() -> None:
    table = summary_table([step(1, 6, 3), step(3, 3, 2)], complexity(2000, 20_000), 0.5)
    assert table.startswith("Pruned in 2 cuts")
    assert rows(table) == [
        ["before", "after the last", "at the end"],
        ["conv", "6", "2", "2"],
        ["parameters", "6,000", "2,000 (3.00x less)", "2,000"],
        ["FLOPs (fvcore)", "60,000", "20,000 (3.00x less)", "20,000"],
        ["accuracy", "75.00%", "-", "50.00%"],
    ]


@pytest.mark.parametrize("accuracy", [0.0, 1.0, None])
def test_extreme_accuracies(accuracy: float | None) -> None:
    cell = rows(step_table(step(accuracy=accuracy)))[-1][1]
    assert cell == {0.0: "0.00%", 1.0: "100.00%", None: "-"}[accuracy]


def test_a_cut_that_removed_nothing() -> None:
    assert rows(step_table(step(after=6)))[2] == ["parameters", "6,000", "6,000"]


def test_names_longer_than_the_table_is_wide_are_not_lost() -> None:
    found = step()
    name = "backbone." * 15 + "conv"
    table = step_table(PruningStep(**{**fields(found), "layers": {name: (6, 3)}}))
    text = "".join(cells[0] for cells in rows(table))
    assert name in text


def fields(found: PruningStep) -> dict[str, object]:
    return {name: getattr(found, name) for name in PruningStep.__slots__}


def test_record_is_plain_json(tmp_path: Path) -> None:
    path = write_step(step(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "cut_after_epoch_4.json"
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    chosen = selection()
    assert found["epoch"] == 4
    assert found["samples"] == 18
    assert found["layers"] == {"conv": [6, 3]}
    assert found["before"] == {
        "parameters": 6000,
        "flops": 60_000,
        "by_layer": {"conv": 60_000},
        "unsupported": {},
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
    write_step(step(accuracy=0.25), tmp_path)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["accuracy_before"] == 0.25


def test_operators_left_out_are_named() -> None:
    counted = Complexity(1, 1, {}, {"aten::add": 3, "aten::max_pool2d": 1})
    table = summary_table([step()], counted, None)
    assert table.endswith("not in the FLOPs: aten::add, aten::max_pool2d")
    assert "not in the FLOPs" not in summary_table([step()], complexity(1, 1), None)


def test_a_table_fits_the_narrowest_terminal() -> None:
    assert max(map(len, summary_table([step()], complexity(10**9, 10**10), 0.5).splitlines())) <= 80
