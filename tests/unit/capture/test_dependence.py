"""Which losses depend on what a network returned: by the definition of the losses, written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.capture.dependence import depends_on


class Two(nn.Module):
    """Features, and scores that are computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images).relu()
        return features, self.head(features)


LOSSES: dict[str, tuple[Callable[[Any, Tensor, Tensor, Tensor], Tensor], bool]] = {
    "scores": (lambda m, x, f, s: s.square().mean(), True),
    "scores and more": (lambda m, x, f, s: m.other(x).sum() + s[:, 0].exp().sum() / 4, True),
    "features alone": (lambda m, x, f, s: f.sum(), False),
    "parameters alone": (lambda m, x, f, s: sum(p.square().sum() for p in m.parameters()), False),
    "detached scores": (lambda m, x, f, s: (m.other(x) - s.detach()).sum(), False),
    "another call": (lambda m, x, f, s: m(x)[1].sum(), False),
    "no history": (lambda m, x, f, s: torch.ones((), requires_grad=True), False),
    "a constant": (lambda m, x, f, s: torch.ones(()), False),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("read", ["as they are", "a part", "not returned"])
def test_a_loss_depends_on_scores(name: str, read: str) -> None:
    make, expected = LOSSES[name]
    model, images = Two(), torch.randn(6, 4)
    features, scores = model(images)
    loss = make(model, images, features, scores)
    found = torch.stack([scores[:, 0], scores[:, 2]], 1) if read == "a part" else scores
    outputs = [] if read == "not returned" else [features, scores]  # of a kind that nobody knows
    assert depends_on(loss, found, outputs) == expected


def test_scores_without_a_history() -> None:
    scores = torch.randn(2, 3)
    assert not depends_on(scores.requires_grad_().sum(), scores.detach(), [scores])


def test_a_graph_is_gone_through_once() -> None:
    """Not once for every path, of which there are 2**200."""
    scores = nn.Linear(2, 2)(torch.ones(1, 2))
    loss = torch.ones((), requires_grad=True)
    for _ in range(200):
        loss = loss + loss
    assert not depends_on(loss, scores, [scores])
    assert depends_on(loss + scores.sum(), scores, [scores])
