"""The clock of a network: what it times, once, and what it leaves as it was."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers import clockwork
from helpers.captured import IMAGES, captured
from helpers.compiled import Backend
from helpers.fits import conv_net, same_state, snapshot
from torch import nn

from acsp_lightning import apply_plan
from acsp_lightning.measure import latency
from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.measure.layer_times import Call
from acsp_lightning.measure.time_table import TimeTable
from acsp_lightning.selection import clock as clock_module
from acsp_lightning.selection.clock import Clock, compare
from acsp_lightning.structure.plan import build_plan

AT = LatencyAt(batch_size=4)


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)


def clock(model: nn.Module, **options: Any) -> Clock:
    groups, _ = captured(model)
    return Clock(model, list(groups.values()), (IMAGES[:1],), AT, TimeTable(), **options)


def test_a_network_is_timed_beside_one_that_is_really_cut() -> None:
    model = conv_net()
    before = snapshot(model)
    groups, _ = captured(model)
    state = torch.get_rng_state()
    found = clock(model).compared({"conv1": 3, "fc1": 5})
    assert torch.equal(state, torch.get_rng_state())
    assert same_state(snapshot(model), before)
    batch = IMAGES[:1].repeat(4, 1, 1, 1)
    assert found.before.median == pytest.approx(clockwork.network_seconds(model.eval(), (batch,)))
    apply_plan(model, build_plan(list(groups.values()), {"conv1": range(3), "fc1": range(5)}))
    assert found.after.median == pytest.approx(clockwork.network_seconds(model, (batch,)))


def test_the_same_widths_are_timed_once() -> None:
    made: list[nn.Module] = []

    def counting(*arguments: Any) -> LatencyComparison:
        made.append(arguments[1])
        return compare(*arguments)

    timed = clock(conv_net(), compare=counting)
    first = timed.compared({"conv1": 3})
    assert timed.compared({"fc1": 9999, "conv1": 3} | {"fc1": 10}) is first
    assert len(made) == 1
    assert timed.compared({}).speedup == 1
    assert len(made) == 2
    timed.compared({})
    assert len(made) == 2
    assert timed.spent > 0


def test_layers_are_timed_at_their_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_net()
    timed = clock(model)
    layers = timed.layers({"conv1": [3], "conv2": [2], "fc1": [4]})
    costs = timed.model(layers)
    widths = {"conv1": 3, "fc1": 4}
    found = timed.seconds(layers, widths)
    assert found.keys() == {layer.name for layer in layers}
    assert found["conv1"] == pytest.approx(costs.of("conv1", widths))
    groups, _ = captured(model)
    apply_plan(model, build_plan(list(groups.values()), {"conv1": range(3), "fc1": range(4)}))
    batch = IMAGES[:1].repeat(4, 1, 1, 1)
    parts = [(name, m) for name, m in model.eval().named_modules() if name in found]
    truth = clockwork.by_layer(model, (batch,))
    for name, _ in parts:
        assert found[name] == pytest.approx(truth[name]), name


def test_a_long_wait_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    times = iter(range(0, 1000, 7))
    monkeypatch.setattr(clock_module, "monotonic", lambda: float(next(times)))
    timed = clock(conv_net(), inform=messages.append)
    timed.model(timed.layers({}))
    assert len(messages) == 1
    assert "kinds of layers" in messages[0]
    messages.clear()
    monkeypatch.setattr(clock_module, "monotonic", lambda: 0.0)
    timed.model(timed.layers({}))
    assert not messages


def test_conditions_are_those_of_both_networks() -> None:
    seen: list[tuple[nn.Module, nn.Module, Any, LatencyAt, float]] = []

    def noting(*arguments: Any) -> LatencyComparison:
        seen.append(arguments)  # type: ignore[arg-type]
        return compare(*arguments)

    at = dataclasses.replace(AT, precision="bfloat16")
    model = conv_net()
    groups, _ = captured(model)
    timed = Clock(model, list(groups.values()), (IMAGES[:1],), at, TimeTable(), compare=noting)
    timed.compared({"conv1": 3})
    ((before, after, (images,), given, _),) = seen
    assert given == at
    assert images.shape[0] == 4
    assert images.dtype == torch.bfloat16
    for network in (before, after):
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} != {torch.bfloat16}


def test_layers_of_a_cut_network_are_timed_in_turns_with_one_another() -> None:
    asked: list[int] = []

    def stopwatch(layers: Sequence[tuple[nn.Module, Call]], _: float) -> list[float]:
        asked.append(len(layers))
        return [1.0] * len(layers)

    model = conv_net()
    groups, _ = captured(model)
    timed = Clock(model, list(groups.values()), (IMAGES[:1],), AT, TimeTable({}, stopwatch))
    layers = timed.layers({})
    found = timed.seconds(layers, {"conv1": 3, "fc1": 5})
    assert list(found) == [layer.name for layer in layers]
    assert asked == [len(layers)]


def test_compiled_networks_are_compiled_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setitem(latency.TIMERS, "cpu", lambda run, arguments: len(run(*arguments)) * 1e-3)
    model = conv_net()
    groups, _ = captured(model)
    at = dataclasses.replace(AT, compiled=True)
    timed = Clock(model, list(groups.values()), (IMAGES[:1],), at, TimeTable())
    found = timed.compared({"conv1": 3})
    assert found.before.compiled
    assert found.after.compiled
    assert backend.graphs == 2
    assert backend.runs > 2 * found.before.runs - 1
