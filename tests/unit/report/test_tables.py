"""Cuts as text."""

import dataclasses
import re

import pytest
from helpers.records import complexity, step, trade_off

from acsp_lightning import Complexity, Latency, LatencyComparison
from acsp_lightning.report import PruningStep, headline, step_table, summary_table, verdict_line
from acsp_lightning.report.step import Outcome, Verdict
from acsp_lightning.report.tables import marks, trade_off_note, trade_off_table


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


def rolled_back(found: PruningStep) -> PruningStep:
    return dataclasses.replace(found, verdict=Verdict("val_acc", 0.75, 0.5, Outcome.LEFT, 0.7))


def test_cuts_that_were_rolled_back_are_not_in_the_table() -> None:
    first, final = step(1, 6, 3), complexity(3000, 30_000)
    assert summary_table([first, rolled_back(step(3, 3, 2))], final, 0.5) == summary_table(
        [first], final, 0.5
    )


def test_where_no_cut_stands_the_table_says_so() -> None:
    table = summary_table([rolled_back(step(1, 6, 3))], complexity(6000, 60_000), 0.5)
    assert table.startswith("No cut was kept")
    assert rows(table) == [
        ["before", "at the end"],
        ["parameters", "6,000", "6,000"],
        ["FLOPs (fvcore)", "60,000", "60,000"],
        ["accuracy", "75.00%", "50.00%"],
    ]


def test_the_guard_shows_what_it_allowed_in_the_same_digits() -> None:
    line = (
        "Guard: cut after epoch 4 rolled back, left as it was (val_acc 0.7500 -> 0.5000, allowed 0.7000)"
    )
    assert verdict_line(rolled_back(step())) == line


@pytest.mark.parametrize("accuracy", [0.0, 1.0, None])
def test_extreme_accuracies(accuracy: float | None) -> None:
    cell = rows(step_table(step(accuracy=accuracy)))[-1][1]
    assert cell == {0.0: "0.00%", 1.0: "100.00%", None: "-"}[accuracy]


def test_a_cut_that_removed_nothing() -> None:
    assert rows(step_table(step(after=6)))[2] == ["parameters", "6,000", "6,000"]


def test_parameters_that_forward_does_not_use_are_named() -> None:
    after = dataclasses.replace(complexity(3000, 30_000), unused={"teacher": 37_000, "loss": 9})
    table = step_table(dataclasses.replace(step(), after=after))
    note = "not in the parameters, since forward does not use them: teacher (37,000), loss (9)"
    assert note in " ".join(table.split())
    assert note in " ".join(summary_table([step()], after, None).split())
    assert "not in the parameters" not in step_table(step())


def test_names_longer_than_the_table_is_wide_are_not_lost() -> None:
    found = step()
    name = "backbone." * 15 + "conv"
    table = step_table(PruningStep(**{**fields(found), "layers": {name: (6, 3)}}))
    text = "".join(cells[0] for cells in rows(table))
    assert name in text


def fields(found: PruningStep) -> dict[str, object]:
    return {name: getattr(found, name) for name in PruningStep.__slots__}


def test_operators_left_out_are_named() -> None:
    counted = Complexity(1, 1, {}, {"aten::add": 3, "aten::max_pool2d": 1})
    table = summary_table([step()], counted, None)
    assert table.endswith("not in the FLOPs: aten::add, aten::max_pool2d")
    assert "not in the FLOPs" not in summary_table([step()], complexity(1, 1), None)


def test_a_table_fits_the_narrowest_terminal() -> None:
    assert max(map(len, summary_table([step()], complexity(10**9, 10**10), 0.5).splitlines())) <= 80


def test_one_line_says_it_all() -> None:
    found = PruningStep(**{**fields(step()), "accuracy_after": 0.5})
    assert headline(found) == (
        "Cut after epoch 4: 1 of 1 layers are narrower, parameters 6,000 -> 3,000, "
        "FLOPs 60,000 -> 30,000 (2.00x less), accuracy 75.00% -> 50.00%"
    )
    assert "accuracy" not in headline(step())
    assert headline(step(after=6)).startswith("Cut after epoch 4: 0 of 1 layers are narrower")


def test_a_preview_says_that_nothing_was_cut() -> None:
    found = PruningStep(**{**fields(step()), "epoch": None})
    assert step_table(found).startswith("Preview: what a cut would do")
    assert headline(found).startswith("Preview: what a cut would do")


def latency(size: int, seconds: float, device: str = "cpu") -> Latency:
    return Latency(size, device, 2, False, 20, seconds, (0.9 * seconds, 1.1 * seconds))


def comparison(size: int, before: float, after: float, device: str = "cpu") -> LatencyComparison:
    both = latency(size, before, device), latency(size, after, device)
    return LatencyComparison(*both, speedup=before / after, error=0.0)


def cells_of(table: str, row: str) -> list[str]:
    (found,) = [text for text in table.splitlines() if text.startswith(row)]
    return re.split(r" {2,}", found.removeprefix(row).strip())


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        (0.0041, 0.00205, ["4.10", "2.05 (2.00x faster)"]),
        (0.002, 0.004, ["2.00", "4.00 (2.00x slower)"]),
        (0.0003, 0.0003, ["0.300", "0.300 (1.00x faster)"]),
        (12.3456, 1.0, ["12,345.60", "1,000.00 (12.35x faster)"]),
    ],
)
def test_latencies_in_the_tables(before: float, after: float, cells: list[str]) -> None:
    timed = dataclasses.replace(step(), latency=(comparison(32, before, after, "cuda:0"),))
    table = step_table(timed)
    assert cells_of(table, "latency, batch 32 (cuda, ms)") == cells
    assert max(map(len, table.splitlines())) <= 80
    summary = summary_table([timed], timed.after, None)
    assert cells_of(summary, "latency, batch 32 (cuda, ms)") == [*cells, "-"]
    assert max(map(len, summary.splitlines())) <= 80
    assert "latency" not in summary_table([timed, timed], timed.after, None)


# -- what a cut costs ----------------------------------------------------------------------------------
NOTE = (
    "measured on 1,024 samples held back from the capture; ± is the standard error; widths are the "
    "shares of channels that groups keep"
)


def trade_off_rows(table: str) -> list[list[str]]:
    title, *lines = table.splitlines()
    assert title == "What a cut costs, before any training"
    body = [line for line in lines if re.match(r"\s*\d+\.\d%", line)]
    return [re.split(r" {2,}", line.strip()) for line in body]


def test_what_every_depth_costs() -> None:
    table = trade_off_table(trade_off())
    assert trade_off_rows(table) == [
        ["100.0%", "100.0%", "75.00%", "100-100%"],
        ["83.3%", "83.3%", "74.90%", "0.10 ± 0.50", "99.8%", "83-100%", "flops=0.9"],
        ["66.7%", "66.7%", "73.75%", "1.25 ± 0.50", "97.5%", "67-100%", "knee"],
        ["50.0%", "50.0%", "55.00%", "20.00 ± 0.50", "60.0%", "50-100%", "flops=0.5"],
        ["33.3%", "33.3%", "25.00%", "50.00 ± 0.50", "0.0%", "33-100%"],
    ]
    assert "tolerance" in [line.strip() for line in table.splitlines()], "below the knee"
    assert NOTE in " ".join(table.split())
    assert trade_off_note(trade_off()) == NOTE
    assert max(map(len, table.splitlines())) <= 80


def test_what_every_depth_costs_with_its_speed() -> None:
    table = trade_off_table(trade_off(timed=True))
    assert [row[2:4] for row in trade_off_rows(table)] == [
        [f"{1 + place / 2:.2f}x", f"{1 + place:.2f}x"] for place in range(5)
    ]
    assert [row[4:] for row in trade_off_rows(table)] == [
        row[2:] for row in trade_off_rows(trade_off_table(trade_off()))
    ]
    assert max(map(len, table.splitlines())) <= 80 + 2 * 9


def test_marks_are_at_their_depths_alone() -> None:
    found = trade_off()
    assert [marks(found, place) for place in range(5)] == [
        [], ["flops=0.9"], ["knee", "tolerance"], ["flops=0.5"], []
    ]  # fmt: skip
    bare = dataclasses.replace(found, knee=None, tolerated=None, targets={})
    assert [marks(bare, place) for place in range(5)] == [[]] * 5
    whole = dataclasses.replace(found, tolerated=0, targets={"0.5": 2, "0.6": 2})
    assert marks(whole, 0) == ["tolerance"]
    assert marks(whole, 2) == ["flops=0.5", "flops=0.6", "knee"]


def test_a_gain_is_a_loss_below_zero() -> None:
    found = trade_off()
    depths = list(found.depths)
    estimate = dataclasses.replace(depths[1].fidelity.drop, mean=-0.0123)
    fidelity = dataclasses.replace(depths[1].fidelity, drop=estimate, accuracy=0.7623)
    depths[1] = dataclasses.replace(depths[1], fidelity=fidelity)
    table = trade_off_table(dataclasses.replace(found, depths=tuple(depths)))
    assert trade_off_rows(table)[1][2:4] == ["76.23%", "-1.23 ± 0.50"]
