"""The global random generators, and passes that nobody notices in them later."""

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def random_state_restored(devices: Iterable[torch.device] | None = None) -> Iterator[None]:
    """Whatever the body draws from global generators (Python, NumPy, torch), nobody notices later.

    Args:
        devices: GPUs of which the generators are put back too; None: all.
    """
    python, legacy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if devices is None else devices
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def random_state_kept(model: nn.Module) -> AbstractContextManager[None]:
    """:func:`random_state_restored`, for the GPUs that a model is on."""
    return random_state_restored({p.device for p in model.parameters() if p.device.type == "cuda"})


def advance_random_state(model: nn.Module) -> None:
    """Draw a number from every global generator, so that the next pass of a model draws others."""
    random.random()
    np.random.rand()
    for device in {torch.device("cpu"), *(p.device for p in model.parameters())}:
        torch.rand(1, device=device)
