import pytest
from helpers.networks import CUT
from helpers.oracle import built, inputs_of, offered

from acsp_lightning.structure.groups import ChannelGroup, LayerSide


@pytest.mark.parametrize("name", CUT)
def test_every_channel_is_on_every_side(name: str) -> None:
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    for group in offered(model, inputs, residual=case.residual).groups:
        assert group.name == group.producers[0].layer
        assert group.sides == group.producers + group.passthrough + group.consumers
        assert {side.side for side in group.producers} == {"out"}
        assert "in" not in {side.side for side in group.passthrough}
        assert {side.side for side in group.consumers} == {"in"}
        for side in group.sides:
            assert set(side.channels) == set(range(group.width))
            assert len(side.channels) == len(side.positions) <= side.width
            assert list(side.positions) == sorted(set(side.positions))


def test_groups_are_plain_data() -> None:
    side = LayerSide("a", "out", 2, (0, 1), (0, 1))
    group = ChannelGroup("a", 2, (side,), (), (), residual=False)
    assert group == ChannelGroup("a", 2, (LayerSide("a", "out", 2, (0, 1), (0, 1)),), (), (), False)
    assert len({group, group}) == 1


@pytest.mark.parametrize(
    ("positions", "round_to", "step"), [(1, 8, 8), (2, 8, 4), (8, 8, 1), (3, 8, 8), (6, 4, 2)]
)
def test_steps_by_hand(positions: int, round_to: int, step: int) -> None:
    channels = tuple(place // positions for place in range(4 * positions))
    side = LayerSide("a", "out", 4 * positions, tuple(range(4 * positions)), channels)
    assert ChannelGroup("a", 4, (side,), (), (), residual=False).step(round_to) == step
