"""Times of single layers, each run by itself: stopwatch, and table of what was timed before."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.files import atomic_write
from acsp_lightning.measure.latency import TIMERS
from acsp_lightning.progress import warn_on_error
from acsp_lightning.structure.forward import evaluation_state, run_forward, without_autocast

WARM_UP = 2  # rounds that are not timed
FEWEST_ROUNDS = 3
MOST_ROUNDS = 15
MOST_BYTES = 2**28  # of weights and inputs that are held at a time


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer in a forward pass.

    Attributes:
        shape: shape of its input.
        dtype: of its input.
        channels_last: whether the input is in this memory format.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    def resized(self, dim: int, width: int) -> "Call":
        """The same call with another number of channels."""
        dim %= len(self.shape)
        return Call((*self.shape[:dim], width, *self.shape[dim + 1 :]), self.dtype, self.channels_last)

    def example(self, device: torch.device) -> Tensor:
        """An input like that of the call."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.rand(self.shape).to(device, self.dtype).contiguous(memory_format=layout)

    def __str__(self) -> str:
        """As part of a key: what the time depends on."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{'x'.join(map(str, self.shape))} {kind}{' channels_last' * self.channels_last}"


Sample = Callable[[], tuple[nn.Module, Call]]
"""Makes a layer of some widths, with how it is called."""

Stopwatch = Callable[[Sequence[tuple[nn.Module, Call]], float], list[float]]
"""Seconds of a pass of every layer, all timed in turns; the second argument is the time to spend."""


def layer_calls(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[Call, ...]]:
    """How one forward pass calls the layers that can be timed by themselves.

    These have parameters or buffers and no submodules, and take one floating-point tensor.

    Args:
        model: the network; left as it is.
        inputs: arguments of forward.

    Returns:
        Calls by qualified name, in the order of the first one.
    """
    found: dict[str, list[Call]] = {}
    odd: set[str] = set()

    def noting(name: str) -> Callable[..., None]:
        def note(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            value = arguments[0] if len(arguments) == 1 and not named else None
            if not isinstance(value, Tensor) or not value.is_floating_point():
                odd.add(name)
                return
            last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
            call = Call(tuple(value.shape), value.dtype, last and not value.is_contiguous())
            found.setdefault(name, []).append(call)

        return note

    with ExitStack() as stack:
        stack.enter_context(evaluation_state(model))
        for name, module in model.named_modules():
            own = bool(module._parameters or module._buffers)
            if own and not any(True for _ in module.children()):
                handle = module.register_forward_pre_hook(noting(name), with_kwargs=True)
                stack.callback(handle.remove)
        run_forward(model, inputs)
    return {name: tuple(calls) for name, calls in found.items() if name not in odd}


def key_of(layer: nn.Module, call: Call) -> str:
    """What the time of a layer depends on, in words, such as "ReLU() on 1x2 float32".

    Layers of one key are taken to be equally fast.
    """
    weights = next((p for p in layer.parameters(recurse=False) if p.ndim == 4), None)
    last = weights is not None and not weights.is_contiguous()
    return f"{type(layer).__name__}({layer.extra_repr()}){' channels_last' * last} on {call}"


def time_layers(layers: Sequence[tuple[nn.Module, Call]], seconds: float) -> list[float]:
    """Medians of the times of a pass of every layer, in seconds.

    In turns, so that noise affects all alike, and a layer finds the caches filled by others, as it does
    in a network.

    Args:
        layers: layers in eval mode, on one device, with how they are called.
        seconds: time to spend; at least :data:`FEWEST_ROUNDS` passes are timed all the same.
    """
    device = next((t.device for layer, _ in layers for t in _tensors(layer)), torch.device("cpu"))
    timer = TIMERS[device.type]
    times: list[list[float]] = [[] for _ in layers]
    inputs = [call.example(device) for _, call in layers]
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.no_grad(), without_autocast(device.type), current:
        end = perf_counter() + seconds
        for place in range(WARM_UP + MOST_ROUNDS):
            if place >= WARM_UP + FEWEST_ROUNDS and perf_counter() > end:
                break
            for (layer, _), value, found in zip(layers, inputs, times, strict=True):
                passed = timer(layer, (value.clone(),))
                if place >= WARM_UP:
                    found.append(passed)
    return [median(found) for found in times]


def conditions(device: torch.device) -> dict[str, str]:
    """What times of layers depend on besides the layers."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    return {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__}


class TimeTable:
    """Times of layers by :func:`key_of`; what is not in it is timed.

    Args:
        seconds: times known before.
        stopwatch: times layers.

    Attributes:
        seconds: all times known.
    """

    def __init__(
        self, seconds: Mapping[str, float] | None = None, stopwatch: Stopwatch = time_layers
    ) -> None:
        self.seconds = dict(seconds or {})
        self._stopwatch = stopwatch

    def of(self, samples: Sequence[Sample], seconds: float) -> list[float]:
        """Seconds of a pass of every layer; those that are not known yet are timed.

        Args:
            samples: the layers.
            seconds: time to spend.
        """
        keys: list[str] = []
        waiting: dict[str, tuple[nn.Module, Call]] = {}
        held = 0

        def time_waiting() -> None:
            if waiting:
                share = seconds * len(waiting) / len(samples)
                found = self._stopwatch(list(waiting.values()), share)
                self.seconds.update(zip(waiting, found, strict=True))
                waiting.clear()

        for sample in samples:
            layer, call = sample()
            key = key_of(layer, call)
            keys.append(key)
            if key in self.seconds or key in waiting:
                continue
            size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(layer))
            size += call.dtype.itemsize * torch.Size(call.shape).numel()
            if held + size > MOST_BYTES:
                time_waiting()
                held = 0
            waiting[key] = (layer.eval(), call)
            held += size
        time_waiting()
        return [self.seconds[key] for key in keys]


@contextmanager
def stored_times(path: Path | None, model: nn.Module) -> Iterator[TimeTable]:
    """A table of the times in a file, which is written again with those that the body adds.

    Args:
        path: the file, which need not exist; None: nothing is stored.
        model: the network whose layers are timed, on its device.
    """
    device = next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))
    found = {} if path is None else conditions(device)
    table = TimeTable({} if path is None else read_times(path, found))
    known = len(table.seconds)
    try:
        yield table
    finally:  # who was refused asks for something else
        if path is not None and len(table.seconds) > known:
            warn_on_error(
                lambda: write_times(path, table.seconds, found),
                f"Times of layers could not be written to {path}",
                "They will be taken again where they are needed.",
            )


def read_times(path: Path, expected: Mapping[str, str]) -> dict[str, float]:
    """Times that were written under the same conditions; none if there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["conditions"] != expected:
            return {}
        return {str(key): float(seconds) for key, seconds in data["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a cache that cannot be read costs time, and no more


def write_times(path: Path, seconds: Mapping[str, float], found: Mapping[str, str]) -> None:
    """Write times for :func:`read_times`, with the conditions under which they were found.

    Raises:
        OSError: if nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(json.dumps({"conditions": found, "seconds": seconds}, indent=1), "utf-8")


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()
