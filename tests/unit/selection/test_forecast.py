"""The time of a network by the sum of its layers' times: between, outside of and at what was timed."""

import pytest

from acsp_lightning.selection.forecast import Forecast


def forecast() -> Forecast:
    return Forecast({10.0: 1.0, 2.0: 0.2, 6.0: 0.8})


@pytest.mark.parametrize(
    ("total", "share"), [(10, 1), (8, 0.9), (6, 0.8), (4, 0.5), (2, 0.2), (1, 0.2), (11, 1)]
)
def test_shares_lie_on_lines_between_networks(total: float, share: float) -> None:
    assert forecast().share(total) == pytest.approx(share)
    if 2 <= total <= 10:
        assert forecast().total(share) == pytest.approx(total)


def test_the_smallest() -> None:
    assert forecast().smallest == 0.2


def test_a_network_of_slower_layers_that_was_faster_by_chance() -> None:
    odd = Forecast({10.0: 1.0, 6.0: 0.5, 4.0: 0.6, 2.0: 0.2})
    assert odd.share(6.0) == 0.5
    assert odd.total(0.6) == pytest.approx(6.0), "the largest sum of at most that share"
    assert odd.total(0.8) == pytest.approx(8.0)


def test_what_was_foreseen_is_remembered() -> None:
    known = forecast()
    assert known.learn(4.0, 0.6) == pytest.approx(0.5)
    assert known.share(4.0) == 0.6
    assert known.share(5.0) == pytest.approx(0.7)
    assert known.foreseen(4.0) == pytest.approx(0.5)
    assert known.foreseen(5.0) == pytest.approx(0.7)
    assert known.learn(4.0, 0.7) == pytest.approx(0.5), "before it was timed at all"
