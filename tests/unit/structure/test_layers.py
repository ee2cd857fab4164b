import pytest
from torch import nn

from acsp_lightning.structure.layers import (
    is_consumer,
    is_producer,
    refusal,
    side_layout,
)

REFUSED = {
    "layer norm": (nn.LayerNorm([6, 4]), "LayerNorm over several dimensions"),
    "instance norm": (nn.InstanceNorm2d(6, track_running_stats=True), "running statistics"),
    "lazy": (nn.LazyConv2d(6, 3), "lazy"),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "weight norm"),
    "recurrent": (nn.LSTM(6, 6), "recurrent"),
    "attention": (nn.MultiheadAttention(6, 2), "attention"),
    "no layer": (nn.ReLU(), "channels of a ReLU"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_cut_say_why(name: str) -> None:
    layer, reason = REFUSED[name]
    assert reason in (refusal(layer) or "")
    with pytest.raises(TypeError, match=reason):
        side_layout(layer, "out")


@pytest.mark.parametrize(
    ("layer", "producer", "consumer"),
    [
        (nn.Conv2d(3, 4, 1), True, True),
        (nn.Conv2d(4, 4, 1, groups=4), True, False),
        (nn.Linear(3, 4), True, True),
        (nn.BatchNorm2d(4), False, False),
        (nn.ReLU(), False, False),
    ],
)
def test_who_makes_channels_and_who_mixes_them(layer: nn.Module, producer: bool, consumer: bool) -> None:
    assert (is_producer(layer), is_consumer(layer)) == (producer, consumer)
