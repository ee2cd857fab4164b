"""Networks as ONNX, and ONNX Runtime that runs them on the CPU."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

# They log at length what the exception says anyway.
LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.onnx._internal.exporter._core")

Run = Callable[[tuple[Any, ...]], list[Tensor]]
"""A function of the arguments of forward that returns the output tensors."""


def onnx_package(name: str) -> Any:
    """One of the packages that ONNX needs.

    Raises:
        ImportError: if it is missing; says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Export to ONNX needs onnx, onnxscript and onnxruntime, and {name} cannot be imported "
            f"({error}). Install them: pip install 'acsp-lightning[export]'."
        ) from error


def write_onnx(program: ExportedProgram, path: Path, names: list[dict[int, str] | None]) -> None:
    """Write a traced network.

    Args:
        program: the network.
        path: of the file.
        names: for every tensor among its inputs the names of dimensions of any size, if it has such.
    """
    torch.onnx.export(
        program, (), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=names
    )


def open_onnx(model: Path | bytes) -> Run:
    """ONNX Runtime with a file, or with its contents."""
    onnxruntime = onnx_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    # By default it starts a thread for every core, and warns if it may not use them all.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(arguments: tuple[Any, ...]) -> list[Tensor]:
        arrays = [leaf.numpy() for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        found = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array) for array in found]

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of the exporters in the body."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
