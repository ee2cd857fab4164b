import pytest
from helpers.networks import CUT
from helpers.oracle import built, inputs_of, offered

from acsp_lightning.structure.groups import (
    STREAMS,
    SUMMED,
    ChannelGroup,
    LayerSide,
    Tracing,
    by_reason,
)


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


def test_every_reason_is_said_once() -> None:
    alike = {
        name: f"its channels run through '{name}.norm': a kind that cannot be cut" for name in "abc"
    }
    whole = {**alike, "d": "it is tied", "e": "it is odd", "f": "it is tied"}
    assert by_reason(whole) == (
        "3 layers ('a' ... 'c'), of the first: its channels run through 'a.norm': a kind that cannot be "
        "cut; 2 layers ('d' ... 'f'): it is tied; 'e': it is odd"
    )
    assert by_reason({}) == ""


def test_sums_that_are_cut_unasked_are_mentioned() -> None:
    inside, stream = (
        ChannelGroup(name, 4, (LayerSide(name, "out", 4, (0, 1, 2, 3), (0, 1, 2, 3)),), (), (), residual)
        for name, residual in (("a", False), ("b", True))
    )
    assert Tracing((inside, stream), {}, chosen=True).sums == STREAMS
    assert Tracing((inside, stream), {}).sums is None
    # None of those that were chosen can be cut.
    assert Tracing((inside,), {"b": "it is odd"}, chosen=True).sums is None


def test_what_residual_would_add_is_counted() -> None:
    assert Tracing((), {"a": "it is odd"}).sums is None
    tracing = Tracing((), {"a": "it is odd"}, ("b", "c"))
    assert tracing.whole == {"a": "it is odd", "b": SUMMED, "c": SUMMED}
    assert tracing.sums == (
        "2 more layers write into residual sums and stay whole; residual=True cuts them too."
    )
    assert Tracing((), {}, ("b",)).sums == (
        "1 more layer writes into residual sums and stays whole; residual=True cuts it too."
    )


@pytest.mark.parametrize("name", [name for name, case in CUT.items() if case.residual])
def test_what_writes_into_sums_is_what_residual_cuts(name: str) -> None:
    case = CUT[name]
    without = offered(built(case), inputs_of(case), residual=False)
    groups = offered(built(case), inputs_of(case), residual=True).groups
    summed = {side.layer for group in groups if group.residual for side in group.producers}
    assert set(without.summed) == summed
    assert not offered(built(case), inputs_of(case), exclude=["*"]).summed


@pytest.mark.parametrize(
    ("positions", "round_to", "step"), [(1, 8, 8), (2, 8, 4), (8, 8, 1), (3, 8, 8), (6, 4, 2)]
)
def test_steps_by_hand(positions: int, round_to: int, step: int) -> None:
    channels = tuple(place // positions for place in range(4 * positions))
    side = LayerSide("a", "out", 4 * positions, tuple(range(4 * positions)), channels)
    assert ChannelGroup("a", 4, (side,), (), (), residual=False).step(round_to) == step
