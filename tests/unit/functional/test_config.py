import math

import pytest

from acsp_lightning.functional import SelectionConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "grid is 0; .* integer >= 1"),
        ({"grid": True}, "grid is True"),
        ({"grid": 4.0}, "grid is 4.0"),
        ({"degree": 0}, "degree is 0"),
        ({"degree": None}, "degree is None"),
        ({"min_channels": 1}, "min_channels is 1; .* >= 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": math.nan}, "seed is nan"),
        ({"keep": 0}, r"keep is 0; .* \(0, 1\]"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": True}, "keep is True"),
        ({"keep": math.nan}, "keep is nan"),
        ({"keep": "half"}, "keep is 'half'"),
        ({"flops": -0.1}, "flops is -0.1"),
        ({"flops": math.inf}, "flops is inf"),
        ({"keep": 0.5, "flops": 0.5}, "keep=0.5 and flops=0.5 both fix the volume"),
        ({"latency": 0}, r"latency is 0; it must be a number in \(0, 1\]"),
        ({"latency": 0.5, "flops": 0.5}, "flops=0.5 and latency=0.5 both fix the volume"),
        ({"latency": 0.5, "keep": 0.5}, "keep=0.5 and latency=0.5 both fix the volume"),
        (
            {"keep": 0.5, "flops": 0.5, "latency": 0.5},
            "keep=0.5 and flops=0.5 and latency=0.5 all fix the volume",
        ),
        ({"latency": 0.5, "curve": "mss"}, "latency=0.5 needs curve='measured' or 'damage'"),
        ({"tolerance": -0.01}, r"tolerance is -0.01; .* \[0, 1\), 0.01 being one point"),
        ({"tolerance": 1}, "tolerance is 1; "),
        ({"tolerance": True}, "tolerance is True"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tolerance": "1%"}, "tolerance is '1%'"),
        ({"tolerance": 0.01, "keep": 0.5}, "keep=0.5 fixes the volume and tolerance=0.01 bounds it"),
        ({"tolerance": 0.01, "curve": "damage"}, "needs curve='measured'; curve='damage' measures no"),
        ({"tolerance": 0.01, "curve": "mss", "flops": 0.5}, "curve='mss' measures no accuracy"),
        ({"weighting": "both"}, "weighting is 'both'; .* contribution, none"),
        ({"curve": "MSS"}, "curve is 'MSS'; .* coverage, mss"),
        ({"interpolation": "spline"}, "interpolation is 'spline'"),
        ({"representative": None}, "representative is None"),
        ({"criterion": ["acsp"]}, "criterion is .* acsp, l1, random, mean_jm"),
    ],
)
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**options)


def test_paper_configuration():
    expected = SelectionConfig(
        grid=None,
        weighting="none",
        curve="mss",
        interpolation="polynomial",
        degree=2,
        representative="weight",
    )
    assert SelectionConfig.paper() == expected


@pytest.mark.parametrize(
    ("options", "by_damage", "is_measured", "is_global"),
    [
        ({}, True, True, True),
        ({"flops": 0.5}, True, False, True),
        ({"latency": 0.5}, True, False, True),
        ({"latency": 0.5, "tolerance": 0.01}, True, True, True),
        ({"tolerance": 0}, True, True, True),
        ({"tolerance": 0.999, "flops": 0.5}, True, True, True),
        ({"keep": 0.5}, False, False, False),
        ({"curve": "damage"}, True, False, True),
        ({"curve": "damage", "flops": 0.5}, True, False, True),
        ({"curve": "coverage"}, False, False, False),
        ({"curve": "mss", "flops": 0.5}, False, False, True),
    ],
)
def test_what_decides(options, by_damage, is_measured, is_global):
    config = SelectionConfig(**options)
    assert (config.by_damage, config.is_measured, config.is_global) == (
        by_damage,
        is_measured,
        is_global,
    )
