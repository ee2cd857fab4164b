"""A cut needs little more memory than a validation batch, however many samples it looks at."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from helpers.memory import peak_of
from torch import nn

from acsp_lightning import SelectionConfig, preview
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.tracing import trace_groups

BATCH, SIDE, WIDTH = 8, 24, 16
ROOM = 2**18
# The normal equations of the widest layer, which stays as wide as it is, and their factor: float64.
EQUATIONS = 2 * 8 * (9 * WIDTH) ** 2


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [("stem", nn.Conv2d(3, WIDTH, 3, padding=1)), ("act", nn.ReLU())]
    layers += [(f"block{place}", Residual(WIDTH)) for place in range(3)]
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(WIDTH, 4))]
    return nn.Sequential(OrderedDict(layers)).eval()


def batches(count: int, size: int = BATCH) -> list[tuple[torch.Tensor]]:
    images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return [(part.clone(),) for part in images.split(size)]  # each with a memory of its own


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acsp_lightning.structure.lockstep.ROOM", ROOM)
    monkeypatch.setattr("acsp_lightning.structure.store.ROOM", ROOM)


def plain() -> int:
    """That of a validation batch."""
    model = network()
    return peak_of(partial(model, *batches(BATCH)[0]))


def refit(samples: list[tuple[torch.Tensor]]) -> nn.Module:
    model = network()
    groups = trace_groups(model, (samples[0][0][:2],)).groups
    layers = [side.layer for group in groups for side in group.consumers]
    found = prepare_refit(model, layers, samples, later=correctable_layers(model))
    plan = build_plan(groups, {group.name: range(0, group.width, 2) for group in groups})
    prune(model, plan, None, groups=groups, refit=found)
    return model


@pytest.mark.parametrize("count", [32, 96])
def test_a_refit_takes_the_memory_of_a_batch_and_of_those_that_wait(count: int) -> None:
    samples = batches(count)
    assert peak_of(partial(refit, samples)) <= plain() + 3 * ROOM + 2**18


def test_all_samples_at_once_take_the_memory_of_all() -> None:
    """So that the test above is not true of anything."""
    assert peak_of(partial(refit, batches(96, 96))) > plain() + 20 * ROOM


CHOICES = [SelectionConfig(keep=0.5), SelectionConfig(tolerance=0.9, min_channels=2)]


@pytest.mark.filterwarnings("ignore")  # of a network that was never trained
@pytest.mark.parametrize("selection", CHOICES)
def test_a_whole_cut(selection: SelectionConfig) -> None:
    """Where widths are measured as well; beside the samples that it looks at, which are all here."""
    model, samples = network(), batches(128)
    with torch.no_grad():  # labels that the network knows, of all classes
        model.fc.bias -= torch.cat([model(images) for (images,) in samples]).mean(0)
        labelled = [(images, model(images).argmax(1)) for (images,) in samples]
    options = {"recovery_samples": 64, "measured_samples": 64}
    peak = peak_of(partial(preview, model, labelled, selection, **options))
    looked_at = sum(images.nbytes for (images,) in samples)
    assert peak <= plain() + 4 * ROOM + EQUATIONS + looked_at
