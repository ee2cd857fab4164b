"""One process alone, made-up answers of a second one, and real ones; fits are in test_ddp.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import on_ranks
from helpers.ranks_job import failing, long_work, shared_out

from acsp_lightning.trainer import ranks


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Lets another process answer ``answer`` in every exchange."""

    def answer(value: Any) -> None:
        monkeypatch.setattr(ranks, "gather", lambda own: [own, value])

    return answer


def fail() -> Any:
    raise KeyError("label")


def test_a_process_alone_decides_and_shares_nothing() -> None:
    value = torch.ones(2)
    assert ranks.gather(value)[0] is value
    assert not ranks.is_distributed()
    assert ranks.is_rank_zero()
    assert ranks.run_on_all_ranks(lambda: 3) == [3]
    assert ranks.on_rank_zero(lambda: 3) == 3
    assert ranks.check_ranks_agree(lambda: {"a": 3}) == {"a": 3}
    ranks.broadcast_([value])
    assert torch.equal(value, torch.ones(2))
    with pytest.raises(KeyError, match="label"):
        ranks.run_on_all_ranks(fail)


def test_results_come_in_the_order_of_ranks(beside: Callable[[Any], None]) -> None:
    beside((7, None))
    assert ranks.run_on_all_ranks(lambda: 3) == [3, 7]


def test_what_fails_elsewhere_fails_here_with_rank_and_reason(beside: Callable[[Any], None]) -> None:
    beside((None, "KeyError: 'label'"))
    with pytest.raises(RuntimeError, match=r"failed on rank 1: KeyError: 'label'"):
        ranks.run_on_all_ranks(lambda: 3)
    with pytest.raises(RuntimeError, match="rank 1"):
        ranks.on_rank_zero(lambda: 3)


def test_own_errors_keep_their_type(beside: Callable[[Any], None]) -> None:
    beside((None, "ValueError: another"))
    with pytest.raises(KeyError, match="label"):
        ranks.run_on_all_ranks(fail)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"conv": 8, "fc": 3}, r"'conv' \(rank 0: 6, rank 1: 8\)"),
        ({"conv": 6}, r"'fc' \(rank 0: 3, rank 1: 'missing'\)"),
        ({"conv": 6, "fc": 3, "more": 1}, r"'more' \(rank 0: 'missing', rank 1: 1\)"),
    ],
)
def test_processes_that_differ_are_told_in_what(
    other: dict[str, int], message: str, beside: Callable[[Any], None]
) -> None:
    beside((other, None))
    with pytest.raises(RuntimeError, match=message):
        ranks.check_ranks_agree(lambda: {"conv": 6, "fc": 3})


def test_processes_that_agree(beside: Callable[[Any], None]) -> None:
    beside(({"conv": (6, 3)}, None))
    assert ranks.check_ranks_agree(lambda: {"conv": (6, 3)}) == {"conv": (6, 3)}


@pytest.mark.parametrize(
    ("costs", "shares", "expected"),
    [
        ([3.0, 1.0, 2.0], 1, [[0, 1, 2]]),
        ([3.0, 1.0, 2.0], 2, [[0], [1, 2]]),
        ([1.0, 1.0, 1.0, 1.0], 2, [[0, 2], [1, 3]]),
        ([5.0, 4.0, 3.0, 3.0, 3.0], 2, [[0, 3], [1, 2, 4]]),
        ([1.0], 3, [[0], [], []]),
        ([], 2, [[], []]),
    ],
)
def test_works_are_shared_out_evenly(costs: list[float], shares: int, expected: list[list[int]]) -> None:
    assert ranks.evenly(costs, shares) == expected


def test_a_process_alone_does_all_works() -> None:
    assert ranks.spread("Counting", [lambda: 3, lambda: 5], [1.0, 2.0]) == [3, 5]
    assert ranks.from_rank(7, 0) == 7
    assert ranks.to_rank_zero(7) == [7]
    assert ranks.number_of_ranks() == 1


@pytest.mark.parametrize("number", [2, 4])
def test_each_work_is_done_once_and_the_first_rank_has_all_results(number: int, tmp_path: Path) -> None:
    costs = [3.0, 1.0, 2.0, 5.0, 1.0]
    first, *others = on_ranks(number, shared_out, tmp_path, costs)
    done = [found["done"] for found in (first, *others)]
    assert done == ranks.evenly(costs, number)
    assert [result.tolist() for result in first["results"]] == [[place] * 2 for place in range(5)]
    assert all(found["results"] == [] for found in others)


def test_a_work_that_fails_ends_all_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(2, failing, tmp_path)
    assert first == "RuntimeError: Pruning failed on rank 1: ValueError: no curve"
    assert second == "ValueError: no curve"


def test_ranks_wait_longer_than_a_collective_may(tmp_path: Path) -> None:
    """And the limit holds: a plain collective ends after it."""
    first, second = on_ranks(2, long_work, tmp_path, 1.5, 4.0)
    assert first["found"] == second["found"] == "decided"
    assert second["stopped"]
