"""The default dtype of a Trainer in our own forward passes, and of no other code."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from acsp_lightning.structure.default_dtype import default_dtype


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("64-true", torch.float64),
        ("bf16-mixed", torch.float32),
        ("32-true", torch.float32),
    ],
)
def test_it_is_that_of_the_trainers_own_passes(precision: str, dtype: torch.dtype) -> None:
    plugin = pl.Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False
    ).precision_plugin
    with plugin.forward_context():
        theirs = torch.get_default_dtype()
    module = nn.Linear(2, 2)
    vars(module)["_trainer"] = SimpleNamespace(precision=plugin.precision)
    with default_dtype(module):
        assert torch.get_default_dtype() == theirs == dtype
    assert torch.get_default_dtype() == torch.float32


def test_without_a_trainer_and_after_a_failure_nothing_changes() -> None:
    with default_dtype(nn.Linear(2, 2)):
        assert torch.get_default_dtype() == torch.float32
    module = nn.Linear(2, 2)
    vars(module)["_trainer"] = SimpleNamespace(precision="64-true")
    with pytest.raises(RuntimeError, match="stop"), default_dtype(module):
        raise RuntimeError("stop")
    assert torch.get_default_dtype() == torch.float32
