from contextlib import suppress

import pytest
import torch
from helpers.networks import Wired
from helpers.randomness import StoppedError, drawn, generator_states, stop
from torch import nn

from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.randomness import advance_random_state, random_state_restored
from acsp_lightning.structure.verification import prunable_groups

X = (torch.randn(2, 3, 8, 8),)


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_of_the_body_are_not_noticed_later(fails: bool) -> None:
    before = generator_states()
    with suppress(StoppedError), random_state_restored():
        inside = drawn()
        assert generator_states() != before
        stop(fails)
    assert generator_states() == before
    assert drawn() == inside, "the body drew what would have come next"


def noisy(net, x):
    """Draws from every generator that a forward may use."""
    return net.inner(x) + sum(drawn())


@pytest.mark.usefixtures("_seeded")
def test_every_pass_draws_the_same_numbers_and_nobody_notices() -> None:
    model, x = Wired(noisy, inner=nn.Linear(3, 2)), torch.ones(4, 3)
    before = generator_states()
    assert torch.equal(run_forward(model, (x,)), run_forward(model, (x,)))
    assert generator_states() == before
    with evaluation_state(model):
        first = run_forward(model, (x,))
        advance_random_state(model)
        assert not any(a == b for a, b in zip(generator_states(), before, strict=True))
        assert not torch.equal(run_forward(model, (x,)), first)
        model(x)
    assert generator_states() == before


@pytest.mark.usefixtures("_seeded")
def test_tracing_moves_no_generator_and_tries_cuts_with_the_same_numbers() -> None:
    model = Wired(
        lambda net, x: net.b((1 + sum(drawn())) * net.a(x)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 3)
    )
    before = generator_states()
    tracing = prunable_groups(model, X)
    assert [group.name for group in tracing.groups] == ["a"]
    assert tracing.left_whole == {}
    assert generator_states() == before
