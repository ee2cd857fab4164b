"""Export of a network to files for other runtimes, each verified against the network."""

import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.export.onnx import Run, onnx_package, open_onnx, quiet, write_onnx
from acsp_lightning.files import atomic_write
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import output_tensors, run_forward
from acsp_lightning.structure.inputs import (
    describe_inputs,
    is_batched,
    of_batch_size,
    positional,
    sample_count,
)

__all__ = ["Exported", "export_onnx", "export_program", "export_state_dict"]

TOLERANCE = 1e-4  # of the largest output, or of 1 where that is smaller


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, read back and compared with the network.

    Attributes:
        path: path of the file.
        format: "onnx", "torch.export" or "state_dict".
        size: size of the file, in bytes.
        batch_sizes: sizes of the batches that file and network were run on; empty for a state dict,
            whose tensors are compared directly.
        difference: largest absolute difference between the outputs of the file and of the network.
        allowed: the largest difference allowed.
    """

    path: Path
    format: str
    size: int
    batch_sizes: tuple[int, ...]
    difference: float
    allowed: float


def export_onnx(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...],
    path: str | PathLike[str],
) -> Exported:
    """Export a network to ONNX, for batches of any size.

    A copy of the network on the CPU is exported in eval mode; the network is left unchanged. ONNX
    Runtime runs the file on ``inputs`` and on a batch of another size from the same samples. The file
    is written to ``path`` only if its outputs match the network's.

    Args:
        model: any module that ``torch.export`` can trace, including a LightningModule with or without a
            Trainer.
        inputs: a tensor or a dict of tensors, passed as ``model(inputs)``; or a tuple, passed as
            ``model(*inputs)``. In the dtype of the model, on any device. The length of the first tensor
            is its batch size; in the file it is dynamic for all tensors of this length. Arguments other
            than tensors become constants.
        path: path of the file, in an existing folder; an existing file is replaced.

    Returns:
        The file, and how far its outputs are from the network's.

    Raises:
        ImportError: if onnx, onnxscript or onnxruntime is missing.
        OSError: if the file cannot be written.
        TypeError: if ``inputs`` is none of these.
        ValueError: if no tensor in ``inputs`` has a sample, the network cannot be exported, or the
            outputs differ by more than 1e-4 of the network's largest (by 1e-4 if that is below 1). An
            existing file is left unchanged then.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        onnx_package(package)
    return _export(model, positional(inputs), Path(path), "onnx", _write_onnx, open_onnx)


def export_program(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...],
    path: str | PathLike[str],
) -> Exported:
    """Export a network with ``torch.export``, for batches of any size.

    ``torch.export.load(path).module()`` needs only torch, and runs on the CPU. The file is compared
    with the network as in :func:`export_onnx`.

    Args:
        model: as in :func:`export_onnx`.
        inputs: as in :func:`export_onnx`.
        path: path of the file, ending in ``.pt2``, in an existing folder.

    Returns:
        As :func:`export_onnx`.

    Raises:
        OSError: as :func:`export_onnx`.
        TypeError: as :func:`export_onnx`.
        ValueError: as :func:`export_onnx`; also if ``path`` does not end in ``.pt2``.
    """
    target = Path(path)
    if target.suffix != ".pt2":
        raise ValueError(f"{target.name!r} does not end in .pt2, which torch.export needs; rename it.")
    return _export(model, positional(inputs), target, "torch.export", torch.export.save, _read_program)


def export_state_dict(model: nn.Module, path: str | PathLike[str]) -> Exported:
    """Save the weights of a network as a plain state dict, which loads with ``weights_only=True``.

    The file is read back, and every tensor in it must be bitwise equal.

    Args:
        model: any module; left unchanged.
        path: path of the file, in an existing folder; an existing file is replaced.

    Returns:
        The file.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the state dict of the network holds anything but tensors.
    """
    target = Path(path)
    state = {name: _on_cpu(value) for name, value in model.state_dict().items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"The state of {type(model).__name__} has {name!r}, a {type(value).__name__}; a plain "
                "state dict holds tensors alone. Register a buffer instead."
            )
    with atomic_write(target) as draft:
        torch.save(state, draft)
        with _failing_as(f"{target} does not read back as it was written"):
            found = torch.load(draft, map_location="cpu", weights_only=True)
            torch.testing.assert_close(found, state, rtol=0, atol=0, equal_nan=True)
        return Exported(target, "state_dict", draft.stat().st_size, (), 0.0, 0.0)


def _export(
    model: nn.Module,
    arguments: tuple[Any, ...],
    target: Path,
    form: str,
    write: Callable[[ExportedProgram, Path], object],
    read: Callable[[Path], Run],
) -> Exported:
    name = type(model).__name__
    arguments = tree_map(_on_cpu, arguments)
    samples = sample_count(arguments)
    # Exporters fail first on a batch of one.
    sizes = (samples, 1 if samples > 1 else 3)
    with _failing_as(f"{name} cannot be copied to the CPU"):
        network = eager_copy(model).cpu()
        batches = [of_batch_size(arguments, size) for size in sizes]
    with atomic_write(target) as draft, evaluation_state(network), quiet():
        expected = []
        for batch in batches:
            shown = describe_inputs(batch)
            with _failing_as(f"{name} fails on {shown}, one of two batches that a file is tried on"):
                expected += _tensors(network, batch)
        if not expected:
            raise ValueError(f"{name} returns no tensor; forward must return the network's outputs.")
        with _failing_as(f"{name} cannot be exported to {form} for batches of any size"):
            write(_program(network, arguments), draft)
        with _failing_as(f"{name} was exported to {form}, but the file does not run"):
            run = read(draft)
            found = [tensor for batch in batches for tensor in run(batch)]
        difference, allowed = _compare(name, form, found, expected)
        return Exported(target, form, draft.stat().st_size, sizes, difference, allowed)


def _program(network: nn.Module, arguments: tuple[Any, ...]) -> ExportedProgram:
    """``network`` traced on zeros, since the example arguments are stored in the file."""
    samples = sample_count(arguments)
    named = signature(network.forward).bind(*arguments).arguments
    batch_dim = torch.export.Dim("batch")
    shapes = tree_map(lambda leaf: {0: batch_dim} if is_batched(leaf, samples) else None, named)
    # A batch of two: torch.export treats a batch of one as a constant.
    zeros = tree_map(
        lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf,
        of_batch_size(arguments, 2),
    )
    said = io.StringIO()
    with redirect_stderr(said):  # on failure, torch prints the graph traced so far
        program = torch.export.export(network, zeros, dynamic_shapes=shapes, strict=False)
    sys.stderr.write(said.getvalue())
    return program


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    leaves = tree_leaves(program.example_inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    first = next(place for place, tensor in enumerate(tensors) if tensor.ndim)
    # Only a name: all axes of this size share it.
    names = [{0: "batch"} if place == first else None for place in range(len(tensors))]
    write_onnx(program, path, names)


def _read_program(path: Path) -> Run:
    network = torch.export.load(path).module()
    return lambda arguments: _tensors(network, arguments)


def _tensors(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    return output_tensors(run_forward(network, arguments))


def _compare(name: str, form: str, found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """The largest absolute difference and the largest allowed; ``ValueError`` if it is exceeded."""
    shapes, wanted = ([tuple(tensor.shape) for tensor in tensors] for tensors in (found, expected))
    if shapes != wanted:
        raise ValueError(
            f"{name} gives outputs of shapes {wanted}, and the {form} file {shapes}; no file was kept. "
            "Does forward fix the size of the batch?"
        )
    pairs = [(f.double(), e.double()) for f, e in zip(found, expected, strict=True) if e.numel()]
    difference = max((_largest(f - e) for f, e in pairs), default=0.0)
    allowed = TOLERANCE * max([1.0, *(_largest(e) for _, e in pairs)])
    if not difference <= allowed:  # also raised for NaN
        raise ValueError(
            f"The outputs of the {form} file differ from those of {name} by up to {difference:.3g}; "
            f"{allowed:.3g} is allowed. No file was kept. Does forward draw random numbers in eval "
            "mode, or keep state from call to call?"
        )
    return difference, allowed


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """Turn errors of the body, except ``OSError``, into a ``ValueError`` that begins with ``what``."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        first = re.sub(r"\x1b\[\d*m", "", str(root)).strip().partition("\n")[0]
        raise ValueError(f"{what}: {type(root).__name__}: {first}") from error
