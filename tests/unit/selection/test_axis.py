"""Widths at which sides are timed, against the plans that cut to them."""

import pytest

from acsp_lightning.selection.axis import MOST_MULTIPLES, SHARED_POINTS, Axis, timed_widths
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.plan import build_plan


def group(name: str, *sides: LayerSide, width: int) -> ChannelGroup:
    every = tuple(range(width))
    out = LayerSide(name, "out", width, every, every)
    return ChannelGroup(name, width, (out,), (), sides, False)


def concatenated() -> tuple[ChannelGroup, ChannelGroup]:
    """Of a side of nine: two channels of two positions each, and four of one; the last is no group's."""
    a = LayerSide("reader", "in", 9, (0, 1, 4, 5), (0, 0, 1, 1))
    b = LayerSide("reader", "in", 9, (2, 3, 6, 7), (0, 1, 2, 3))
    return group("a", a, width=2), group("b", b, width=4)


def test_the_axis_of_a_single_group_has_all_of_its_candidates() -> None:
    a, _ = concatenated()
    axis = Axis.of([(a, a.consumers[0])], {"a": [1]})
    assert axis.points == ({"a": 1}, {"a": 2})
    assert axis.counts == (7, 9)
    assert axis.width == 9


def test_positions_are_those_of_a_plan() -> None:
    a, b = concatenated()
    axis = Axis.of([(g, g.consumers[0]) for g in (a, b)], {"a": [1], "b": [1, 2, 3]})
    for widths in ({"a": 1}, {"b": 3}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"other": 1}):
        known = {name: range(k) for name, k in widths.items() if name != "other"}
        truth = build_plan((a, b), known).kept("reader", "in") or tuple(range(9))
        assert axis.kept(widths) == truth
        assert axis.count(widths) == len(truth)


def test_groups_that_share_a_side_shrink_together() -> None:
    a, b = group("a", width=40), group("b", width=60)
    parts = [
        (g, LayerSide("r", "in", 100, tuple(range(g.width)), tuple(range(g.width)))) for g in (a, b)
    ]
    axis = Axis.of(parts, {"a": [*range(2, 40)], "b": [*range(2, 60)]})
    assert len(axis.points) <= SHARED_POINTS
    assert axis.points[0] == {"a": 2, "b": 2}
    assert axis.points[-1] == {"a": 40, "b": 60}
    assert axis.counts == tuple(sorted(axis.counts))
    assert [axis.count(point) for point in axis.points] == list(axis.counts)


def test_without_candidates_there_is_the_full_width_alone() -> None:
    a, b = concatenated()
    for parts in ([a], [a, b]):
        axis = Axis.of([(g, g.consumers[0]) for g in parts], {})
        assert axis.points == ({g.name: g.width for g in parts},)
        assert axis.counts == (9,)


@pytest.mark.parametrize(
    ("width", "block"), [(16, 8), (64, 8), (128, 8), (256, 16), (512, 32), (2048, 32)]
)
def test_multiples_of_blocks_are_among_the_widths(width: int, block: int) -> None:
    found = timed_widths(group("a", width=width), 2, 1)
    assert set(range(block, width, block)) <= set(found)
    assert found == sorted(set(found))
    assert 2 <= found[0] <= found[-1] < width
    if width <= 512:
        assert len(range(block, width, block)) <= MOST_MULTIPLES


def test_limits_hold_for_the_widths() -> None:
    found = timed_widths(group("a", width=96), 20, 12)
    assert found == [24, 36, 48, 60, 72, 84], "multiples of 12, of which 24 is one of 8 too"
    out = LayerSide("a", "out", 32, tuple(range(32)), tuple(p // 4 for p in range(32)))
    blocks = ChannelGroup("a", 8, (out,), (), (), False)
    assert timed_widths(blocks, 2, 8) == [2, 4, 6], "four positions each"
