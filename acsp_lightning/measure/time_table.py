"""Times of layers that are known, by what they depend on; kept in a file, perhaps of another machine."""

import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import torch
from torch import nn

from acsp_lightning.files import atomic_write
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.measure.layer_times import Call, device_of, key_of, time_layers
from acsp_lightning.progress import warn_on_error
from acsp_lightning.serialization import from_record, to_record

LAYER_TIMES = "layer_times.json"  # in the folder of reports
MOST_BYTES = 2**28  # of weights and inputs that are held at a time

Sample = Callable[[], tuple[nn.Module, Call]]
"""Makes a layer of some widths, with how it is called."""

Stopwatch = Callable[[Sequence[tuple[nn.Module, Call]], float], list[float]]
"""Seconds of a pass of every layer, all timed in turns; the second argument is the time to spend."""


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
            tensors = chain(layer.parameters(), layer.buffers())
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            size += call.dtype.itemsize * torch.Size(call.shape).numel()
            if held + size > MOST_BYTES:
                time_waiting()
                held = 0
            waiting[key] = (layer.eval(), call)
            held += size
        time_waiting()
        return [self.seconds[key] for key in keys]


@dataclass(frozen=True, slots=True)
class TimedNetwork:
    """A network that was really cut.

    Attributes:
        total: sum of the times of its layers, run by themselves, in seconds.
        times: of the uncut network and of this one, in turns.
    """

    total: float
    times: LatencyComparison


@dataclass(frozen=True, slots=True)
class StoredTimes:
    """Times of layers as a file has them.

    Attributes:
        conditions: what they depend on besides the layers, see :func:`conditions`.
        layers: seconds by :func:`key_of`.
    """

    conditions: Mapping[str, str]
    layers: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Self:
        """What :meth:`write` has written.

        Raises:
            OSError: if the file cannot be read; ValueError: if it is no such file.
        """
        stored = from_record(cls, json.loads(path.read_text(encoding="utf-8")), advice="")
        for seconds in stored.all_seconds():
            if not 0 < seconds < math.inf:
                raise ValueError(f"it has a time of {seconds} s.")
        return stored

    def all_seconds(self) -> Iterable[float]:
        """All times."""
        return self.layers.values()

    def write(self, path: Path) -> None:
        """Write a file, and the folders above it.

        Raises:
            OSError: if nothing can be written there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(to_record(self, json=True), indent=1), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Profile(StoredTimes):
    """Times of a network and its layers, for a decision on another machine.

    Attributes:
        networks: cut to several depths, the uncut one first.
        latency_at: the conditions of their passes, in words.
    """

    networks: tuple[TimedNetwork, ...]
    latency_at: str

    def all_seconds(self) -> Iterable[float]:
        """All times, of layers and networks."""
        return chain(self.layers.values(), (network.total for network in self.networks))


def conditions(device: torch.device, runtime: str = "") -> dict[str, str]:
    """What times depend on besides the layers.

    Args:
        device: of the network.
        runtime: what runs it, with its version, if that is not torch.
    """
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    # The name of a processor may be no more than that of its kind.
    host, threads = platform.node(), str(torch.get_num_threads())
    found = {"host": host, "device": name, "threads": threads, "torch": torch.__version__}
    if runtime:
        return {**found, "runtime": runtime}
    found["matmul"] = _setting(torch.get_float32_matmul_precision)
    if cuda:
        settings = torch.backends.cudnn
        found["cudnn"] = f"tf32 {_setting(lambda: settings.allow_tf32)}, benchmark {settings.benchmark}"
    return found


def _setting(read: Callable[[], object]) -> str:
    try:
        return str(read())
    except RuntimeError:  # where torch's old and new switches were both set
        return "mixed"


@contextmanager
def kept_times(path: Path | None, model: nn.Module) -> Iterator[TimeTable]:
    """A table with the times in a file, which is written again with those that the body adds.

    Args:
        path: the file, which need not exist; one of other conditions, or one that cannot be read, costs
            time, and no more. None: nothing is kept.
        model: the network whose layers are timed, on its device.
    """
    found = conditions(device_of([model]))
    table = TimeTable({} if path is None else _known(path, found))
    known = len(table.seconds)
    try:
        yield table
    finally:  # who was refused asks for something else
        if path is not None and len(table.seconds) > known:
            warn_on_error(
                lambda: StoredTimes(found, table.seconds).write(path),
                f"Times of layers could not be written to {path}",
                "They will be taken again where they are needed.",
            )


def _known(path: Path, expected: Mapping[str, str]) -> Mapping[str, float]:
    try:
        stored = StoredTimes.read(path)
    except (OSError, ValueError):
        return {}
    return stored.layers if stored.conditions == expected else {}
