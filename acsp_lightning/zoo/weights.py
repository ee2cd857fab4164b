"""Loading the weights of a trained network from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_weights"]

# Prefixes that DataParallel and ImageClassifier add to the names of the network's parameters.
_PREFIXES = ("module.", "network.")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load every parameter and buffer of ``network`` from a file; all of them or none.

    The file is a state dict, or a checkpoint that has one under ``state_dict``, such as Lightning's; a
    prefix ``module.`` or ``network.`` of all names is removed. It is read with ``weights_only=True``,
    so it cannot run code.

    Args:
        network: changed in place; stays on its device.
        path: path of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else, or the weights of another network; the message
            names the first tensor that does not match.
    """
    state = _own_names(_read(Path(path)))
    own = network.state_dict()
    misfit = _first_misfit(own, state)
    if misfit:
        missing, unknown = len(own.keys() - state.keys()), len(state.keys() - own.keys())
        raise ValueError(
            f"{path} holds the weights of another network than {type(network).__name__}: {misfit} "
            f"({missing} names missing, {unknown} unknown). Name the network and the number of "
            "classes that the file was made with; a pruned network is loaded with "
            "acsp_lightning.load_pruned."
        )
    network.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file of weights at {path} (looked in {Path.cwd()}). Give the path of a state "
            "dict or of a checkpoint, or none to start from random weights."
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no set of exceptions
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights: {reason}. It must be a file that torch.save made of a "
            "state dict."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = sorted(map(str, state))[:5] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{path} holds {found}, which is no state dict: names of parameters with their tensors. "
            "Save network.state_dict()."
        )
    return dict(state)


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _first_misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    for name, tensor in own.items():
        if name not in state:
            return f"it has no {name!r}"
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            return f"its {name!r} has shape {found} instead of {wanted}"
    unknown = next((name for name in state if name not in own), None)
    return None if unknown is None else f"its {unknown!r} has no place in the network"
