"""The uncut network teaches the cut one as a loss written by hand would have it, to the bit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.fits import Fit, callback, conv_net, same_state, snapshot
from helpers.lessons import HandTaught, Pupil
from lightning.pytorch.plugins import MixedPrecision

from acsp_lightning import Distillation


def adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


def half() -> list[MixedPrecision]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


# Options of both modules, of the teaching, and of the Trainer.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float], Callable[[], dict[str, Any]]]] = {
    "plain": ({}, {}, dict),
    "other numbers": ({}, {"weight": 0.5, "temperature": 2.0}, dict),
    "the teacher alone": ({}, {"weight": 1.0}, dict),
    "adam": ({"configure": adam}, {}, dict),
    "accumulation": ({}, {}, partial(dict, accumulate_grad_batches=2)),
    "clipping": ({}, {}, partial(dict, gradient_clip_val=0.1)),
    "manual": ({"manual": True}, {}, dict),
    "bf16": ({}, {}, partial(dict, precision="bf16-mixed")),
    "bf16, manual": ({"manual": True}, {}, partial(dict, precision="bf16-mixed")),
    "fp16": ({}, {}, lambda: {"plugins": half()}),
    "fp16, accumulation, clipping": (
        {},
        {},
        lambda: {"plugins": half(), "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    ),
    "fp16, manual": ({"manual": True}, {}, lambda: {"plugins": half()}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_those_of_a_loss_written_by_hand(fit: Fit, variant: str) -> None:
    options, numbers, trainer = VARIANTS[variant]

    def run(module: Pupil, **pruning: Any) -> Pupil:
        fit(module, [callback(**pruning)], **trainer())
        return module

    expected = run(HandTaught(conv_net(dropout=0.2), **options, **numbers))
    found = run(Pupil(conv_net(dropout=0.2), **options), distillation=Distillation(**numbers))
    alone = run(Pupil(conv_net(dropout=0.2), **options))
    assert same_state(snapshot(found), snapshot(expected))
    assert not same_state(snapshot(found), snapshot(alone))
    assert found.logged == expected.logged, "the user's own loss is logged"
    assert found.taught == expected.taught
    assert found.taught[:4] == [0.0] * 4 < found.taught[4:]
