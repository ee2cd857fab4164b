"""Latency of a network: the measured time of a forward pass."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.inputs import cloned, describe_inputs, of_batch_size, positional

__all__ = ["Latency", "LatencyComparison", "compare_latency", "measure_latency"]

WARM_UP_RUNS = 3  # allocations, kernel selection, compilation

WARM_UP_SHARE = 0.2  # of min_seconds; processors raise their clock rate under load

# Timed passes before switching to the other network, after one that fills the caches again.
TURN = 3
LONG_PASS = 0.1  # seconds; it hardly notices the caches, and turns of one pass tell more

# The standard error of a median is this share of the distance between the quartiles over the root of the
# number, if values are distributed normally.
MEDIAN_ERROR = 0.93


QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)

Turns = Sequence[Sequence[float]]
"""Seconds of the timed passes of a network, turn by turn."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        batch_size: number of samples in the pass.
        device: device it ran on, such as "cpu" or "cuda:0".
        threads: threads that torch may use for one operation on the CPU.
        compiled: whether it was compiled with ``torch.compile``; else it ran eagerly.
        runs: number of timed passes, without the warm-up.
        median: median of their times, in seconds.
        quartiles: first and third quartile of their times, in seconds.
    """

    batch_size: int
    device: str
    threads: int
    compiled: bool
    runs: int
    median: float
    quartiles: tuple[float, float]


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Latencies of two networks, timed alternately in one run on the same inputs.

    Attributes:
        before: latency of the first network.
        after: latency of the second.
        speedup: how many times faster the second network is; below 1 if it is slower. The median over
            the turns of the ratio of both times: a machine that changes its pace changes it for both
            networks of a turn.
        error: standard error of ``speedup``, as a share of it; of a single turn 0.
    """

    before: Latency
    after: Latency
    speedup: float
    error: float


def measure_latency(
    model: nn.Module,
    example_inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    compiled: bool = False,
    min_runs: int = 20,
    min_seconds: float = 0.5,
) -> tuple[Latency, ...]:
    """Time the forward pass of a network in evaluation mode.

    Without gradients and without autocast, in the dtype of the weights. The network is left unchanged:
    modes, parameters, buffers, attributes and random states; its own forward hooks run. Every pass takes
    fresh copies of the inputs and starts after the previous one has finished. On a GPU the time is that
    between two CUDA events, including waits for the CPU.

    Args:
        model: any module on the CPU or on one GPU, including a LightningModule with or without a
            Trainer.
        example_inputs: a tensor or a dict of tensors, passed as ``model(inputs)``; or a tuple, passed
            as ``model(*inputs)``. On the device and in the dtype of the model. The length of the first
            tensor is its batch size; all tensors of this length are repeated or truncated to each of
            ``batch_sizes``.
        batch_sizes: batch sizes to measure, each at least 1.
        compiled: time a copy that is compiled with ``torch.compile`` for each batch size separately.
            This resets the compiler: code compiled before is compiled again at its next call. False:
            run eagerly, even if the user has compiled it.
        min_runs: minimum number of timed passes, at least 1.
        min_seconds: minimum time to measure for, at least 0.

    Returns:
        One measurement for each batch size, in the order of ``batch_sizes``.

    Raises:
        TypeError: if ``example_inputs`` is none of these.
        ValueError: if an argument is out of its range, no tensor in the inputs has a sample, the
            network is on another kind of device, or the forward pass fails; the cause is chained.
    """
    arguments = positional(example_inputs)
    found = _measure((model,), arguments, batch_sizes, compiled, min_runs, min_seconds)
    return tuple(summary(size, device, turns, compiled=compiled) for size, device, (turns,) in found)


def compare_latency(
    before: nn.Module,
    after: nn.Module,
    example_inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    compiled: bool = False,
    min_runs: int = 20,
    min_seconds: float = 0.5,
) -> tuple[LatencyComparison, ...]:
    """Time two networks alternately in one run, so that noise on a shared machine affects both.

    Args:
        before: a network; as in :func:`measure_latency`.
        after: another one that takes the same inputs, on the same device.
        example_inputs: as in :func:`measure_latency`.
        batch_sizes: as in :func:`measure_latency`.
        compiled: as in :func:`measure_latency`.
        min_runs: as in :func:`measure_latency`, for each of the networks.
        min_seconds: minimum time to measure for, for each network in the mean: both make the same
            number of passes in twice that time.

    Returns:
        One measurement for each batch size, in the order of ``batch_sizes``.

    Raises:
        TypeError: as in :func:`measure_latency`.
        ValueError: as in :func:`measure_latency`.
    """
    arguments = positional(example_inputs)
    found = _measure((before, after), arguments, batch_sizes, compiled, min_runs, min_seconds)
    return tuple(compared(size, device, both, compiled=compiled) for size, device, both in found)


def compared(
    size: int, device: str, both: Sequence[Turns], *, compiled: bool = False
) -> LatencyComparison:
    """The record of two networks that took turns of the same numbers of passes."""
    before, after = (summary(size, device, turns, compiled=compiled) for turns in both)
    ratios = [sum(first) / sum(second) for first, second in zip(*both, strict=True)]
    low, middle, high = torch.tensor(ratios, dtype=torch.float64).quantile(QUARTILES).tolist()
    error = MEDIAN_ERROR * (high - low) / middle / len(ratios) ** 0.5
    return LatencyComparison(before, after, middle, error)


def check_batch_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``sizes`` is a sequence of integers >= 1; it may be empty."""
    wanted = "it must be a list of integers >= 1, such as [1, 32]"
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise ValueError(f"{name} is {sizes!r}; {wanted}.")
    for size in sizes:
        if not is_batch_size(size):
            raise ValueError(f"{name} has {size!r}; {wanted}.")


def is_batch_size(size: object) -> bool:
    """Whether this is an integer >= 1."""
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _measure(
    models: Sequence[nn.Module],
    arguments: tuple[Any, ...],
    batch_sizes: Sequence[int],
    compiled: bool,
    min_runs: int,
    min_seconds: float,
) -> list[tuple[int, str, list[Turns]]]:
    """Every batch size, the device, and the seconds of the passes of all models."""
    check_batch_sizes("batch_sizes", batch_sizes)
    if isinstance(min_runs, bool) or not isinstance(min_runs, int) or min_runs < 1:
        raise ValueError(f"min_runs is {min_runs!r}; it must be an integer >= 1.")
    if not 0 <= min_seconds < math.inf:
        raise ValueError(f"min_seconds is {min_seconds!r}; it must be a finite number >= 0.")
    device = _device(models, arguments)
    timer = timer_on(device)
    if compiled:
        models = [eager_copy(model) for model in models]
    found = []
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_state(model))
            stack.enter_context(default_dtype(model))
        # CUDA events are recorded on the current device.
        stack.enter_context(torch.cuda.device(device) if device.type == "cuda" else nullcontext())
        for size in batch_sizes:
            batch = of_batch_size(arguments, size)
            with _compiled(models) if compiled else nullcontext(models) as networks:
                times = times_in_turns(networks, batch, timer, min_runs, min_seconds)
            found.append((size, str(device), times))
    return found


def _device(models: Sequence[nn.Module], arguments: tuple[Any, ...]) -> torch.device:
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    tensors += [parameter for model in models for parameter in model.parameters()]
    devices = {tensor.device for tensor in tensors} - {torch.device("cpu")}
    if len(devices) > 1:
        raise _elsewhere(devices)
    return devices.pop() if devices else torch.device("cpu")


def _elsewhere(devices: Iterable[torch.device]) -> ValueError:
    return ValueError(
        f"The networks and their inputs are on {', '.join(sorted(map(str, devices)))}; latency is "
        "measured on the CPU and on a single GPU. Move them there."
    )


@contextmanager
def _compiled(models: Sequence[nn.Module]) -> Iterator[list[Any]]:
    # After eight shapes of one function the compiler would fall back to eager code, which would be
    # timed.
    torch.compiler.reset()
    try:
        with torch.compiler.set_stance("default"):
            yield [torch.compile(model, dynamic=False) for model in models]
    finally:
        torch.compiler.reset()


Timer = Callable[[Callable[..., Any], tuple[Any, ...]], float]


def _seconds_on_cpu(network: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    start = perf_counter()
    network(*arguments)
    return perf_counter() - start


def _seconds_on_cuda(network: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    event: Any = torch.cuda.Event  # untyped
    start, end = event(enable_timing=True), event(enable_timing=True)
    # Kernels queued while the GPU is still busy with the previous pass would hide their launch time.
    torch.cuda.synchronize()
    start.record()
    network(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


TIMERS: Mapping[str, Timer] = {"cpu": _seconds_on_cpu, "cuda": _seconds_on_cuda}


def timer_on(device: torch.device) -> Timer:
    """What times passes on a device; raises ``ValueError`` if nothing does."""
    if device.type not in TIMERS:
        raise _elsewhere([device])
    return TIMERS[device.type]


def times_in_turns(
    networks: Sequence[Callable[..., Any]],
    arguments: tuple[Any, ...],
    timer: Timer,
    min_runs: int,
    min_seconds: float,
) -> list[Turns]:
    """Seconds of every timed pass of every network, after the warm-up.

    Not by torch.utils.benchmark, whose Timer runs one statement and cannot alternate between two.
    """
    try:
        tried = _in_turns(networks, arguments, timer, WARM_UP_RUNS, WARM_UP_SHARE * min_seconds)
    except Exception as error:
        raise ValueError(
            f"Timing needs a forward pass that runs on {describe_inputs(arguments)}; it raised "
            f"{type(error).__name__}: {error}. Check that model(*inputs) runs by itself, on the model's "
            "device and dtype, for batches of this size."
        ) from error
    quickest = min(seconds for turns in tried for turn in turns for seconds in turn)
    length = 1 if quickest > LONG_PASS else TURN
    return _in_turns(networks, arguments, timer, min_runs, min_seconds, length)


def _in_turns(
    networks: Sequence[Callable[..., Any]],
    arguments: tuple[Any, ...],
    timer: Timer,
    min_runs: int,
    min_seconds: float,
    length: int = TURN,
) -> list[Turns]:
    times: list[list[list[float]]] = [[] for _ in networks]
    end = perf_counter() + min_seconds * len(networks)
    while length * len(times[0]) < min_runs or perf_counter() < end:
        for network, turns in zip(networks, times, strict=True):
            if length > 1:  # the other network has filled the caches, a larger one more of them
                timer(network, cloned(arguments))
            turns.append([timer(network, cloned(arguments)) for _ in range(length)])
    return list(times)


def summary(size: int, device: str, turns: Turns, *, compiled: bool = False) -> Latency:
    """The record of timed passes; see :class:`Latency`."""
    seconds = [second for turn in turns for second in turn]
    first, median, third = torch.tensor(seconds, dtype=torch.float64).quantile(QUARTILES).tolist()
    return Latency(
        batch_size=size,
        device=device,
        threads=torch.get_num_threads(),
        compiled=compiled,
        runs=len(seconds),
        median=median,
        quartiles=(first, third),
    )
