"""What a network offers, and which of its groups are due."""

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.captured import IMAGES
from helpers.fits import conv_net

from acsp_lightning import PruningSettings, SelectionConfig
from acsp_lightning.measure.complexity import measure_complexity
from acsp_lightning.selection.examination import examine, groups_due
from acsp_lightning.structure.example import Example

HALF = PruningSettings(selection=SelectionConfig(keep=0.5), recovery="none")


def groups(*names: str) -> list[Any]:
    return [SimpleNamespace(name=name) for name in names]


@pytest.mark.parametrize(
    ("options", "visited", "due"),
    [
        ({}, (), "abc"),
        ({}, ("a",), "abc"),
        ({"layers_per_epoch": 1}, (), "a"),
        ({"layers_per_epoch": 1}, ("a",), "b"),
        ({"layers_per_epoch": 2}, ("b",), "ac"),
        ({"layers_per_epoch": 2}, ("a", "b", "c"), ""),
        # What is decided for the network as a whole needs all that is left of it.
        ({"layers_per_epoch": 1, "selection": SelectionConfig(flops=0.5)}, ("a",), "bc"),
    ],
)
def test_groups_that_are_due(options: dict[str, Any], visited: tuple[str, ...], due: str) -> None:
    settings = PruningSettings(**{"selection": SelectionConfig(keep=0.5), **options})
    found = groups_due(groups("a", "b", "c"), settings, visited)
    assert "".join(group.name for group in found) == due


def test_examined_are_groups_and_size_of_the_network() -> None:
    model = conv_net()
    example = Example.of(model, IMAGES[:1])
    found = examine(model, example, HALF)
    assert [group.name for group in found.tracing.groups] == ["conv1", "conv2", "fc1"]
    assert found.complexity == measure_complexity(model, IMAGES[:1])
    small = PruningSettings(selection=SelectionConfig(flops=0.01))
    with pytest.raises(ValueError, match="flops"):
        examine(model, example, small)
