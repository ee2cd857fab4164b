import pytest

from acsp_lightning.structure.sides import parameter_side, parsed, size_side


@pytest.mark.parametrize(
    ("side", "meaning"),
    [
        ("out", ("layer", "out", None)),
        ("in", ("layer", "in", None)),
        (parameter_side("gamma", 1), ("parameter", "gamma", 1)),
        (size_side("width", None), ("size", "width", None)),
        (size_side("splits", 2), ("size", "splits", 2)),
    ],
)
def test_sides_are_read_as_they_are_written(side, meaning) -> None:
    assert parsed(side) == meaning


@pytest.mark.parametrize("side", ["up", "", "=", ":1", "gamma:one", "=widths:"])
def test_what_is_no_side_is_refused(side) -> None:
    with pytest.raises(ValueError, match="is no side"):
        parsed(side)
