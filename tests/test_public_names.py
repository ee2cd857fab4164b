"""The public names, and what is imported for them."""

import subprocess
import sys
from pathlib import Path

import pytest

import acsp_lightning

BARE = """
import sys
for name in ("lightning", "pytorch_lightning", "torch_pruning", "fvcore", "sklearn", "kneed"):
    sys.modules[name] = None
import torch
from torch import nn
from acsp_lightning import PruningPlan, apply_plan, load_pruned, restore_structure
def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
small = net()
sides = [("0", "out"), ("1", "out"), ("2", "in")]
cuts = [dict(layer=layer, side=side, width=8, kept=[1, 5]) for layer, side in sides]
apply_plan(small, PruningPlan.from_dict(dict(cuts=cuts)))
torch.save(small.state_dict(), sys.argv[1])
large = load_pruned(net(), sys.argv[1])
x = torch.rand(2, 1, 8, 8)
assert torch.equal(large.eval()(x), small.eval()(x)) and large[0].out_channels == 2
"""


def test_loading_needs_neither_lightning_nor_torch_pruning(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, tmp_path / "weights.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found() -> None:
    assert set(acsp_lightning.__all__) <= set(dir(acsp_lightning))
    for name in acsp_lightning.__all__:
        assert getattr(acsp_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'load_prune'"):
        acsp_lightning.load_prune  # noqa: B018
