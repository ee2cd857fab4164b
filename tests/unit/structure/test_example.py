import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.structure.example import as_arguments, example_inputs

X, Y = torch.rand(4, 2), torch.arange(4)


class Two(nn.Module):
    def __init__(self, example: object = None) -> None:
        super().__init__()
        self.example_input_array = example
        self.layer = nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(left + right)


def test_example_inputs_come_from_the_batch() -> None:
    (found,) = example_inputs(Two(), X, 2)
    assert torch.equal(found, X[:2])
    (found,) = example_inputs(Two(), {"a": X, "b": [X, "text"]}, 1)
    assert found["a"].shape == found["b"][0].shape == (1, 2)
    assert found["b"][1] == "text"


def test_example_input_array_goes_first() -> None:
    left, right = torch.rand(3, 2), torch.rand(3, 2)
    assert example_inputs(Two(left), X, 1)[0] is left
    assert len(example_inputs(Two((left, right)), X, 1)) == 2
    found = example_inputs(Two({"right": right, "left": left}), X, 1)
    assert found[0] is left
    assert found[1] is right


class Between(torch.nn.Module):
    example_input_array: object = None

    def forward(self, left, right):
        return left - right


def test_inputs_are_handed_on_as_the_example_says() -> None:
    module, left, right = Between(), torch.ones(2), torch.zeros(2)
    assert as_arguments(module, (left, right)) == ((left, right),)
    module.example_input_array = (left, right)
    assert as_arguments(module, [left, right]) == (left, right)
    assert as_arguments(module, left) == (left,)
    module.example_input_array = {"left": left, "right": right}
    assert as_arguments(module, {"right": right, "left": left}) == (left, right)
    assert example_inputs(module, None, 1) == (left, right)
    with pytest.raises(ValueError, match=r"called by name, but it does not take \['left', 'up'\]"):
        as_arguments(module, {"left": left, "up": right})
