"""What generators would draw, and bodies that stop."""

import random

import numpy as np
import torch


class StoppedError(Exception):
    pass


def stop(fails: bool) -> None:
    if fails:
        raise StoppedError


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def generator_states() -> tuple[object, ...]:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
