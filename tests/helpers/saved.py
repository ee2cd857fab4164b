"""Inputs and outputs of layers as numpy arrays, and what is counted from them."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from helpers.fits import val_loader


class Saved:
    """Everything that goes into and comes out of the layers named, as numpy arrays."""

    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        self.inputs: dict[str, list[np.ndarray]] = {name: [] for name in layers}
        self.outputs: dict[str, list[np.ndarray]] = {name: [] for name in layers}
        for name in layers:
            model.get_submodule(name).register_forward_hook(self.hook(name))

    def hook(self, name: str) -> Any:
        def save(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name].append(arguments[0].detach().double().numpy())
            self.outputs[name].append(output.detach().double().numpy())

        return save


def positions(values: np.ndarray, tokens: bool = False) -> np.ndarray:
    """Outputs as (B, N, P)."""
    if tokens:
        values = np.moveaxis(values, -1, 1)
    return values.reshape(*values.shape[:2], -1)


def check_moments(found: Any, values: np.ndarray, labels: np.ndarray) -> None:
    for label in range(found.num_classes):
        rows = values[labels == label]
        assert int(found.count[label]) == len(rows)
        np.testing.assert_allclose(found.mean[label], rows.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.m2[label], rows.var(0) * len(rows), rtol=1e-4, atol=1e-5)


def uneven() -> Any:
    return val_loader(17, batch_size=5)  # batches of 5, 5, 5 and 2
