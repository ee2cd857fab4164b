"""Modules compiled in every way there is, by a compiler that counts."""

from collections.abc import Callable
from typing import Any

import torch

from helpers.fits import Classifier


class Backend:
    """Runs graphs as they are; counts those compiled and their runs."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run


def compile_module(module: Classifier, backend: Backend) -> Any:
    return torch.compile(module, backend=backend)


def compile_submodule(module: Classifier, backend: Backend) -> Any:
    module.net = torch.compile(module.net, backend=backend)
    return module


def compile_in_place(module: Classifier, backend: Backend) -> Any:
    module.net.compile(backend=backend)
    return module


COMPILE = [compile_module, compile_submodule, compile_in_place]
