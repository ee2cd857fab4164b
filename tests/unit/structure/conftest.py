import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from acsp_lightning.structure.randomness import random_state_restored


@pytest.fixture
def _seeded() -> Iterator[None]:
    """Another state of the generators in every test would hide what is not put back."""
    with random_state_restored():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        yield
