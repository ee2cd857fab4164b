import pytest
import torch
from helpers.networks import Wired, plain
from torch import nn

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.tracing import trace_groups

X = (torch.randn(2, 3, 8, 8),)


def test_forward_that_fails_is_told_with_its_inputs():
    with pytest.raises(UnsupportedStructureError, match=r"forward failed .*tensor \(2, 5\)"):
        trace_groups(plain(), (torch.randn(2, 5),))


def test_module_without_forward():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

    with pytest.raises(UnsupportedStructureError, match=r"Silent\.forward failed.*implement it"):
        trace_groups(Silent(), X)


def test_outputs_without_tensors_are_refused():
    class Result:
        def __init__(self, y):
            self.y = y

    model = Wired(lambda net, x: Result(net.inner(x)), inner=plain())
    with pytest.raises(UnsupportedStructureError, match="outputs"):
        trace_groups(model, X)
