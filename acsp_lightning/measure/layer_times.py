"""Times of single layers, each run by itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.measure.latency import timer_on
from acsp_lightning.structure.evaluation import evaluation_state, without_autocast
from acsp_lightning.structure.forward import run_forward

WARM_UP = 2  # rounds that are not timed
FEWEST_ROUNDS = 3
MOST_ROUNDS = 15


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
    """The least of the times of some passes of every layer, in seconds.

    In turns, so that a layer finds the caches filled by others, as it does in a network. The least,
    since a pass is so short that another program makes it many times as long, or does not touch it:
    on a busy machine medians of a few differ by half from run to run.

    Args:
        layers: layers in eval mode, on one device, with how they are called.
        seconds: time to spend; at least :data:`FEWEST_ROUNDS` passes are timed all the same.

    Raises:
        ValueError: if they are neither on the CPU nor on a GPU.
    """
    device = device_of(layer for layer, _ in layers)
    timer = timer_on(device)
    inputs = [call.example(device) for _, call in layers]
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.no_grad(), without_autocast(device.type), current:

        def passed(layer: nn.Module, value: Tensor) -> float:
            return timer(layer, (value.clone(),))

        passes = [
            partial(passed, layer, value) for (layer, _), value in zip(layers, inputs, strict=True)
        ]
        return least_times(passes, seconds)


def least_times(passes: Sequence[Callable[[], float]], seconds: float) -> list[float]:
    """The least of the times of some passes of every layer, taken in turns.

    Args:
        passes: for every layer, makes a pass and returns its seconds.
        seconds: as in :func:`time_layers`.
    """
    times: list[list[float]] = [[] for _ in passes]
    end = perf_counter() + seconds
    for turn in range(WARM_UP + MOST_ROUNDS):
        if turn >= WARM_UP + FEWEST_ROUNDS and perf_counter() > end:
            break
        for timed, found in zip(passes, times, strict=True):
            taken = timed()
            if turn >= WARM_UP:
                found.append(taken)
    return [min(found) for found in times]


def device_of(layers: Iterable[nn.Module]) -> torch.device:
    """That of the first parameter or buffer; without any the CPU."""
    tensors = (chain(layer.parameters(), layer.buffers()) for layer in layers)
    return next((tensor.device for tensor in chain.from_iterable(tensors)), torch.device("cpu"))
