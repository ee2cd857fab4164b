"""One process alone, and made-up answers of a second one; two real processes are in test_ddp.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

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
