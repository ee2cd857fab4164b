"""A network with every kind of coupling that a file of weights has to restore."""

import torch
from torch import nn

from acsp_lightning import PruningPlan, apply_plan
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.verification import verify_groups


class Mixed(nn.Module):
    """A depthwise block, a residual sum, a concatenation, and a linear layer after a flatten."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12, affine=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, width, 1)
        self.branch = nn.Conv2d(width, 6, 1)
        self.act = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(width + 6, 4, 2, stride=2)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.norm(self.expand(x)).relu()).relu())
        x = torch.cat([x, self.act(self.branch(x))], 1)
        return self.head(self.up(x).relu().flatten(1))


INPUTS = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


def cut(model: nn.Module) -> PruningPlan:
    tracing = verify_groups(model, INPUTS, trace_groups(model, INPUTS, residual=True))
    assert not tracing.left_whole
    plan = build_plan(tracing.groups, {g.name: range(1, g.width, 2) for g in tracing.groups})
    apply_plan(model, plan)
    return plan


def assert_same(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(a.eval()(*INPUTS), b.eval()(*INPUTS))
    sizes = [
        [
            vars(m).get(n)
            for n in ("in_channels", "out_channels", "groups", "in_features", "num_features")
        ]
        for model in (a, b)
        for m in model.modules()
    ]
    assert sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
