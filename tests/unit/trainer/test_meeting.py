"""Threads that meet at a store in memory; processes do in test_ranks.py and test_ddp.py."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from acsp_lightning.trainer import meeting
from acsp_lightning.trainer.meeting import Meeting


def ranks(number: int) -> list[Meeting]:
    store = dist.HashStore()
    return [Meeting(store, rank, number) for rank in range(number)]


def test_nobody_goes_on_before_all_have_come() -> None:
    came: list[tuple[str, int]] = []

    def take_part(place: Meeting) -> None:
        for turn in range(3):
            time.sleep(0.05 * ((place.rank + turn) % 3))  # another one is the last in every turn
            came.append(("comes", turn))
            place.wait()
            came.append(("goes", turn))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(take_part, ranks(3)))
    for turn in range(3):
        last = max(place for place, event in enumerate(came) if event == ("comes", turn))
        assert last < came.index(("goes", turn))


def test_a_rank_that_works_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "SILENCE", 0.3)
    monkeypatch.setattr(meeting, "BEAT", 0.05)
    one, other = ranks(2)

    def work() -> None:
        with other.working():
            time.sleep(1.0)
        other.wait()

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(work)
        one.wait()
    assert done.exception() is None


def test_a_rank_without_a_sign_of_life_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "SILENCE", 0.2)
    first, second, _ = ranks(3)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(first.wait)
        with pytest.raises(RuntimeError, match=r"Rank 2 gave no sign of life .* while rank 1 waited"):
            second.wait()
    with pytest.raises(RuntimeError, match="Rank 2 gave no sign"):
        other.result()


def test_signs_of_life_end_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "BEAT", 0.02)
    (place,) = ranks(1)

    def fail() -> None:
        with place.working():
            time.sleep(0.2)
            raise KeyError("no label")

    with pytest.raises(KeyError):
        fail()
    beats = place.store.add(meeting.BEATS, 0)
    assert beats >= 2
    time.sleep(0.1)
    assert place.store.add(meeting.BEATS, 0) == beats
