"""Times of networks and of their layers as ONNX Runtime runs them on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acsp_lightning.export.formats import export_onnx
from acsp_lightning.export.onnx import Run, onnx_package, open_onnx, quiet, write_onnx
from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import (
    TIMERS,
    LatencyComparison,
    compared,
    times_in_turns,
)
from acsp_lightning.measure.layer_times import Call, least_times
from acsp_lightning.selection.clock import FEWEST_PASSES, Runtime

CPU = torch.device("cpu")


def onnxruntime() -> Runtime:
    """ONNX Runtime on the CPU.

    Raises:
        ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    for package in ("onnx", "onnxscript"):
        onnx_package(package)
    version = onnx_package("onnxruntime").__version__
    return Runtime(f"onnxruntime {version}", time_exported_layers, compare_exported)


def time_exported_layers(layers: Sequence[tuple[nn.Module, Call]], seconds: float) -> list[float]:
    """As :func:`acsp_lightning.measure.layer_times.time_layers`, of exported layers.

    One after the other and not in turns: a session has threads of its own, which wait for more work
    while that of the next one runs.
    """
    found = []
    for run, (_, call) in zip(exported_layers(layers), layers, strict=True):
        timed = partial(TIMERS["cpu"], _called(run), (call.example(CPU),))
        found += least_times([timed], seconds / len(layers))
    return found


def _called(run: Run) -> Callable[..., list[Tensor]]:
    return lambda *arguments: run(arguments)


def exported_layers(layers: Sequence[tuple[nn.Module, Call]]) -> Iterator[Run]:
    """Sessions with one layer each.

    All layers are exported in one network, side by side, and then taken apart: of the time of an export
    little depends on its size.

    Args:
        layers: layers in eval mode, with how they are called.
    """
    onnx = onnx_package("onnx")
    side_by_side = _SideBySide([layer for layer, _ in layers]).cpu().eval()
    with quiet(), torch.no_grad(), TemporaryDirectory() as folder:
        program = torch.export.export(
            side_by_side, tuple(call.example(CPU) for _, call in layers), strict=False
        )
        path = Path(folder) / "layers.onnx"
        write_onnx(program, path, [None] * len(layers))
        whole = onnx.load(path)
    ends = [tuple(entry.name for entry in side) for side in (whole.graph.input, whole.graph.output)]
    extractor = onnx.utils.Extractor(whole)
    for given, made in zip(*ends, strict=True):
        yield open_onnx(extractor.extract_model([given], [made]).SerializeToString())


class _SideBySide(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(value) for layer, value in zip(self.layers, given, strict=True))


def compare_exported(
    before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], at: LatencyAt, seconds: float
) -> LatencyComparison:
    """As :func:`acsp_lightning.selection.clock.compare`, of exported networks.

    Raises:
        ValueError: if one of them cannot be exported.
    """
    arguments = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, inputs)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        for network, file in zip((before, after), files, strict=True):
            export_onnx(network, arguments, file)
        runs = [open_onnx(file) for file in files]
    networks = [_called(run) for run in runs]
    timed = times_in_turns(networks, arguments, TIMERS["cpu"], FEWEST_PASSES, seconds)
    return compared(at.batch_size, "onnxruntime on cpu", timed)
