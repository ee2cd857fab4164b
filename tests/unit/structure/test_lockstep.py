"""Passes that meet, against a log of what ran when."""

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from acsp_lightning.structure.lockstep import Lockstep

PLACES = ["a", "b", "c"]


class Passes:
    """Passes that come by three places each; what ``change`` makes is entered before the second."""

    def __init__(self, count: int, held: int, change: Callable[[nn.Module], Any] | None = None) -> None:
        self.log: list[str] = []
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.model.skips, self.model.queue = {"all": []}, deque()  # type: ignore[assignment]
        self.change = change
        passes = [partial(self.one, index) for index in range(count)]
        self.steps = Lockstep(self.model, passes, lambda: held)

    def one(self, index: int) -> None:
        self.log.append(f"{index} begins")
        with ExitStack() as stack:
            for place in PLACES:
                if place == "b" and self.change is not None:
                    stack.enter_context(self.change(self.model) or nullcontext())
                tell = partial(self.log.append, f"{index} tells {place}")
                if self.steps.meet(place, tell, partial(self.log.append, f"{place} is settled")):
                    self.log.append(f"{index} goes on from {place}")

    def begun(self) -> int:
        return sum(entry.endswith("begins") for entry in self.log)


def test_all_tell_before_anything_is_settled() -> None:
    passes = Passes(3, held=0)
    passes.steps.run(PLACES)
    found = [entry for entry in passes.log if "tells" in entry or "settled" in entry]
    told = {place: [f"{index} tells {place}" for index in range(3)] for place in PLACES}
    assert found == [line for place in PLACES for line in (*told[place], f"{place} is settled")]
    assert passes.begun() == 3
    assert all(passes.steps.is_settled(place) for place in PLACES)
    assert not any("goes on from c" in entry for entry in passes.log), "nothing is left to do"


def test_those_without_room_begin_anew_and_tell_once() -> None:
    passes = Passes(3, held=2**60)
    passes.steps.run(PLACES)
    told = [entry for entry in passes.log if "tells" in entry]
    assert told == [f"{index} tells {place}" for place in PLACES for index in range(3)]
    assert passes.begun() == 9
    assert not any("goes on" in entry for entry in passes.log)


def test_a_single_pass_always_waits() -> None:
    passes = Passes(1, held=2**60, change=lambda model: setattr(model, "cache", object()))
    passes.steps.run([*PLACES, "a place that nobody comes to"])
    assert passes.begun() == 1
    assert "0 goes on from c" in passes.log


def after(*_: object) -> None:
    """Nothing is entered."""


CHANGES: dict[str, Callable[[Any], Any]] = {
    "an attribute": lambda model: setattr(model[0], "cache", object()),
    "a list": lambda model: model.__dict__.setdefault("features", []).append(object()),
    "a list in a dict": lambda model: model.skips["all"].append(object()),
    "a queue": lambda model: model.queue.append(object()),
    "a counter": lambda model: setattr(model, "calls", getattr(model, "calls", 0) + 1),
    "train mode of a part": lambda model: after(model[0].eval()),
    "a hook": lambda model: after(model[0].register_forward_hook(after)),
    "a parameter": lambda model: setattr(model[0], "bias", nn.Parameter(torch.zeros(2))),
    "a module": lambda model: setattr(model, "more", nn.Identity()),
    "a buffer": lambda model: setattr(model[1], "running_mean", model[1].running_mean + 1.0),
    "a buffer in place": lambda model: after(model[1].running_mean.add_(1.0)),
    "random numbers": lambda _: after(torch.rand(1)),
    "the grad mode": lambda _: torch.no_grad(),
    "autocast": lambda _: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", CHANGES)
def test_who_has_changed_what_others_see_does_not_wait(name: str) -> None:
    """From the second place on they begin anew."""
    with torch.random.fork_rng():
        passes = Passes(2, held=0, change=CHANGES[name])
        passes.steps.run(PLACES)
    assert passes.begun() == 4
    assert sum("goes on from a" in entry for entry in passes.log) == 2
    assert not any("goes on from b" in entry for entry in passes.log)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["in a pass", "while settling"])
def test_a_failure_comes_through_and_all_passes_are_left(kind: type, place: str) -> None:
    left: list[int] = []

    def one(index: int) -> None:
        try:
            steps.meet("a", lambda: None, settle)
            if index == 1:
                raise kind("broken")
        finally:
            left.append(index)

    def settle() -> None:
        if place == "while settling":
            raise kind("broken")

    steps = Lockstep(nn.Identity(), [partial(one, index) for index in range(3)], lambda: 0)
    with pytest.raises(kind, match="broken"):
        steps.run(["a", "b"])
    assert sorted(left) == [0, 1, 2]


def test_passes_that_come_by_different_places() -> None:
    """As where forward takes another way for some samples: each place is settled by those who come."""
    log: list[str] = []

    def one(*places: str) -> None:
        for place in places:
            steps.meet(
                place, partial(log.append, f"tell {place}"), partial(log.append, f"settle {place}")
            )

    ways = [("a", "c"), ("b", "c"), ("a", "b")]
    steps = Lockstep(nn.Identity(), [partial(one, *way) for way in ways], lambda: 0)
    steps.run(PLACES)
    assert {place: log.count(f"tell {place}") for place in PLACES} == {"a": 2, "b": 2, "c": 1}
    assert sorted(entry for entry in log if entry.startswith("settle")) == [
        f"settle {p}" for p in PLACES
    ]


def test_what_is_in_force_meanwhile() -> None:
    inside: list[bool] = []

    class Noted:
        def __enter__(self) -> None:
            inside.append(True)

        def __exit__(self, *_: object) -> None:
            inside.pop()

    def one() -> None:
        steps.meet("a", lambda: None, lambda: None, Noted())
        assert not inside

    def other() -> None:
        assert inside
        steps.meet("a", lambda: None, lambda: None)

    steps = Lockstep(nn.Identity(), [one, other], lambda: 0)
    steps.run(["a", "b"])


def test_the_default_dtype_is_that_of_whoever_runs() -> None:
    seen: list[torch.dtype] = []

    def one(dtype: torch.dtype) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            for place in PLACES:
                steps.meet(place, lambda: seen.append(torch.get_default_dtype()), settle)
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(before)

    def settle() -> None:
        assert torch.get_default_dtype() == torch.float32

    dtypes = [torch.bfloat16, torch.float64, torch.float32]
    for held in (0, 2**40):
        seen.clear()
        steps = Lockstep(
            nn.Linear(2, 2), [partial(one, dtype) for dtype in dtypes], lambda held=held: held
        )
        steps.run(PLACES)
        assert seen == 3 * dtypes
        assert torch.get_default_dtype() == torch.float32
