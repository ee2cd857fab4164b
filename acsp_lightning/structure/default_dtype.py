"""The default dtype of a Trainer of "true" precision, which forward passes may count on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@contextmanager
def default_dtype(model: nn.Module) -> Iterator[None]:
    """The default dtype of tensors that forward makes, as the Trainer of ``model``, if any, sets it."""
    precision = getattr(vars(model).get("_trainer"), "precision", "")
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES.get(precision, before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)
