"""The clock: what it says of networks whose times are known, and what it leaves untouched."""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers.fits import same_state
from helpers.logs import Log, Seen
from torch import Tensor, nn

from acsp_lightning import compare_latency, measure_latency
from acsp_lightning.measure.latency import TIMERS, compared

BRIEF: dict[str, Any] = {"min_runs": 3, "min_seconds": 0}


class Sleeping(nn.Module):
    """Sleeps for some milliseconds per sample; notes its name and the batch sizes that it saw."""

    def __init__(self, milliseconds: float, name: str = "", log: Log | None = None) -> None:
        super().__init__()
        self.milliseconds, self.name = milliseconds, name
        self.log = Log() if log is None else log

    def forward(self, images: Tensor) -> Tensor:
        self.log.append((self.name, len(images)))
        time.sleep(len(images) * self.milliseconds / 1000)
        return images


def convolutions(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3))


# -- what the clock says -----------------------------------------------------------------------
def test_a_known_time() -> None:
    one, three = measure_latency(Sleeping(10), torch.rand(1, 2), (1, 3), min_runs=9, min_seconds=0)
    assert (one.batch_size, three.batch_size) == (1, 3)
    assert 0.010 <= one.median < 0.020
    assert 0.030 <= three.median < 0.045
    for found in (one, three):
        assert found.quartiles[0] <= found.median <= found.quartiles[1]
        assert found.runs == 9
        assert (found.device, found.compiled) == ("cpu", False)
        assert found.threads == torch.get_num_threads()


def test_a_rare_disturbance_does_not_count() -> None:
    class Disturbed(Sleeping):
        def forward(self, images: Tensor) -> Tensor:
            time.sleep(0.05 if len(self.log) % 7 == 6 else 0)
            return super().forward(images)

    (found,) = measure_latency(Disturbed(2), torch.rand(1, 2), (1,), min_runs=15, min_seconds=0)
    assert 0.002 <= found.median < 0.007


@pytest.mark.parametrize(
    ("options", "least"), [({"min_runs": 30, "min_seconds": 0}, 0), ({**BRIEF, "min_seconds": 0.2}, 0.2)]
)
def test_runs_and_seconds_are_both_reached(options: dict[str, Any], least: float) -> None:
    start = time.perf_counter()
    (found,) = measure_latency(nn.Linear(2, 2), torch.rand(1, 2), (1,), **options)
    assert time.perf_counter() - start >= least
    assert found.runs >= 30


def test_a_quarter_of_the_channels_is_faster() -> None:
    (found,) = compare_latency(
        convolutions(64), convolutions(16), torch.rand(1, 3, 24, 24), (4,), min_runs=90, min_seconds=0
    )
    # A tenth of the operations.
    assert found.speedup > 2
    assert 0 <= found.error < math.inf


def test_a_machine_that_changes_its_pace_does_so_for_both() -> None:
    """In the first turns of three passes everything takes three times as long as in the others."""
    found = compared(1, "cpu", [turns([6, 6, 2, 2, 2]), turns([3, 3, 3, 1, 1])])
    assert (found.before.median, found.after.median) == (2, 3)
    assert found.speedup == 2
    # Ratios of 2, 2, 2/3, 2, 2.
    assert found.error == 0
    uneven = compared(1, "cpu", [turns([3, 6, 9, 12, 15]), turns([3] * 5)])
    assert uneven.speedup == 3
    # Quartiles of 2 and 4 around a median of 3, of five turns.
    assert uneven.error == pytest.approx(0.93 * (4 - 2) / 3 / 5**0.5)


def turns(seconds: list[float]) -> list[list[float]]:
    return [[second] * 3 for second in seconds]


# A turn of a short pass has four of them, three of which are timed; the warm-up is one such turn.
@pytest.mark.parametrize(("quicker", "runs", "calls"), [(0.2, 5, 4 + 5), (0.09, 6, 4 + 2 * 4)])
def test_turns_of_two_long_passes_are_one_of_each(
    monkeypatch: pytest.MonkeyPatch, quicker: float, runs: int, calls: int
) -> None:
    def timer(network: Any, arguments: tuple[Tensor, ...]) -> float:
        network(*arguments)
        return 1.0 if network is first else quicker

    monkeypatch.setitem(TIMERS, "cpu", timer)

    first, second = Sleeping(0), Sleeping(0)
    (found,) = compare_latency(first, second, torch.rand(1, 2), (1,), min_runs=5, min_seconds=0)
    assert (found.before.runs, found.after.runs) == (runs, runs)
    assert len(first.log) == len(second.log) == calls
    assert found.speedup == pytest.approx(1 / quicker)


def test_two_networks_take_turns() -> None:
    log = Log()
    first, second = Sleeping(0, "first", log), Sleeping(0, "second", log)
    found = compare_latency(first, second, torch.rand(1, 2), (2, 5), min_runs=6, min_seconds=0)
    assert [(c.before.runs, c.after.runs) for c in found] == [(6, 6), (6, 6)]
    turn = [[(name, size)] * 4 for size in (2, 5) for name in ("first", "second")]
    # To warm up and then twice, three timed passes each.
    assert log == 3 * (turn[0] + turn[1]) + 3 * (turn[2] + turn[3])


def test_a_network_against_itself_is_no_faster() -> None:
    network = Sleeping(5)
    (found,) = compare_latency(network, network, torch.rand(1, 2), (1,), min_runs=9, min_seconds=0)
    assert 0.7 < found.speedup < 1.4


def test_results_are_frozen_and_plain() -> None:
    (found,) = measure_latency(nn.Linear(2, 2), torch.rand(1, 2), (1,), **BRIEF)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.median = 0.0  # type: ignore[misc]
    assert json.loads(json.dumps(dataclasses.asdict(found)))["runs"] == found.runs


# -- what goes in ------------------------------------------------------------------------------
class Shapes(nn.Module):
    """Keeps the shapes of what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()

    def forward(self, *arguments: Any) -> None:
        tensors = arguments[0].values() if isinstance(arguments[0], dict) else arguments
        self.seen.add(tuple(tuple(t.shape) if isinstance(t, Tensor) else t for t in tensors))


@pytest.mark.parametrize(
    ("inputs", "seen"),
    [
        (torch.rand(1, 3), ((5, 3),)),
        (torch.rand(9, 3), ((5, 3),)),
        ({"x": torch.rand(2, 3)}, ((5, 3),)),
        (({"x": torch.rand(2, 3)},), ((5, 3),)),
        # A mask of other length and a scalar belong to no sample.
        ((torch.rand(2, 3), torch.ones(4, 4), torch.tensor(1.0), True), ((5, 3), (4, 4), (), True)),
    ],
)
def test_inputs_have_the_batch_size(inputs: Any, seen: Any) -> None:
    network = Shapes()
    measure_latency(network, inputs, (5,), **BRIEF)
    assert network.seen == {seen}


def test_samples_are_those_of_the_example() -> None:
    class Check(nn.Module):
        def forward(self, images: Tensor) -> None:
            assert images.flatten().tolist() == [1, 2, 1, 2, 1]
            assert not images.requires_grad
            images.zero_()

    example = torch.tensor([[1.0], [2.0]], requires_grad=True)
    measure_latency(Check(), example, (5,), **BRIEF)
    assert example.flatten().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": 32}, r"batch_sizes is 32; it must be a list of integers >= 1, such as"),
        ({"batch_sizes": "32"}, r"batch_sizes is '32'"),
        ({"batch_sizes": [1, 0]}, r"batch_sizes has 0"),
        ({"batch_sizes": [1.0]}, r"batch_sizes has 1\.0"),
        ({"batch_sizes": [True]}, r"batch_sizes has True"),
        ({"min_runs": 0}, r"min_runs is 0; it must be an integer >= 1"),
        ({"min_seconds": -1}, r"min_seconds is -1; it must be a finite number >= 0"),
        ({"min_seconds": float("inf")}, r"min_seconds is inf"),
        ({"example_inputs": torch.rand(0, 2)}, r"first tensor .*\(tensor \(0, 2\)\) has no sample"),
        ({"example_inputs": torch.tensor(1.0)}, r"first tensor .* has no sample"),
        ({"example_inputs": ("text",)}, r"first tensor .*\(str\) has no sample"),
        (
            {"example_inputs": torch.rand(1, 2, device="meta")},
            r"on meta; latency is measured on",
        ),
        (
            {"example_inputs": torch.rand(1, 3)},
            r"runs on tensor \(1, 3\); it raised RuntimeError: .*runs by itself",
        ),
    ],
)
def test_other_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_latency(nn.Linear(2, 2), **{"example_inputs": torch.rand(1, 2), **options})


def test_other_kinds_of_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="found list"):
        measure_latency(nn.Linear(2, 2), [torch.rand(1, 2)])  # type: ignore[arg-type]


# -- what stays as it was ------------------------------------------------------------------------
class Counting(nn.Module):
    """Counts its calls in one buffer and replaces another, and draws a random number."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("absent", None)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = images.mean()
        if self.fails:
            raise RuntimeError("out of luck")
        return images + torch.rand_like(images)


def network(fails: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), Counting(fails))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_and_the_world_stay_as_they_were(fails: bool, compiled: bool, backend: Any) -> None:
    model, other = network(fails), network(fails)
    model[1].eval()
    model[0].weight.requires_grad_(False)
    tensors = [*model.parameters(), *model.buffers()]
    modes = [module.training for module in model.modules()]
    attributes = [dict(vars(module)) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    images = torch.rand(2, 3, 8, 8)
    random_state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if fails:
            with pytest.raises(ValueError, match="out of luck"):
                compare_latency(model, other, images, compiled=compiled, **BRIEF)
        else:
            compare_latency(model, other, images, compiled=compiled, **BRIEF)
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert same_state(model.state_dict(), state)
    for module, before in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == before.keys()


# -- compiled ------------------------------------------------------------------------------------
class Backend:
    """Runs graphs as they are; counts those compiled."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(inputs)
        return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Stands for the compiler of machine code, which takes its time."""
    found = Backend()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=found))
    yield found
    torch.compiler.reset()


def test_every_batch_size_is_compiled_by_itself(backend: Backend) -> None:
    class Net(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + 1

    network, example = Net(2, 2), torch.rand(1, 2)
    # The limit holds for all networks of a class, and the user has reached it before and does so after.
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for size in (3, 4):
            torch.compile(network, dynamic=False)(torch.rand(size, 2))
        found = measure_latency(network, example, (5, 6, 7, 8), compiled=True, **BRIEF)
        for size in (9, 10):
            torch.compile(network, dynamic=False)(torch.rand(size, 2))
    assert [latency.compiled for latency in found] == [True] * 4
    shapes = [{tuple(tensor.shape) for tensor in inputs} for inputs in backend.graphs]
    assert [(size, 2) in seen for size, seen in enumerate(shapes, 3)] == [True] * 8


def test_eagerly_also_what_the_user_has_compiled(backend: Backend) -> None:
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)))
    model[0].compile(backend=backend)
    (found,) = measure_latency(model, torch.rand(1, 2), (1,), **BRIEF)
    assert not found.compiled
    assert not backend.graphs
    measure_latency(model, torch.rand(1, 2), (1,), compiled=True, **BRIEF)
    assert backend.graphs
    before = len(backend.graphs)
    with torch.no_grad():
        model(torch.rand(1, 2))
    assert len(backend.graphs) > before
