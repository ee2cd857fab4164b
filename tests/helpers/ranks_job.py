"""What each rank of a gloo group does for the tests of what ranks share."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import acsp_lightning.capture.hooks
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.trainer.merging import merge_over_ranks
from acsp_lightning.trainer.ranks import on_rank_zero, run_on_all_ranks, spread
from helpers.captured import IMAGES, LABELS
from helpers.fits import CLASSES, conv_net

CPU = torch.device("cpu")

# Positions of samples, by rank; of the last kind the ranks have seen no class in common.
SHARES: dict[str, tuple[Sequence[int], ...]] = {
    "even": tuple(range(rank, 18, 4) for rank in range(4)),
    "none on one": (range(3), (), range(3, 18), ()),
    "by class": (range(0, 18, 3), range(1, 18, 3), range(2, 18, 3), ()),
}


def wide_net() -> nn.Sequential:
    """Of whose 160 channels the inputs that 18 samples give are held, not summed."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 160), nn.ReLU(), nn.Linear(160, CLASSES))


NETWORKS = {"conv": conv_net, "wide": wide_net}


def capture_of(network: str, places: Sequence[int]) -> Activations:
    """Captured in batches of up to four."""
    model = NETWORKS[network]().eval()
    # As many classes as were seen, as where labels of later batches are not known.
    capture = ActivationCapture(model, trace_groups(model, (IMAGES[:2],)).groups, None, num_classes=1)
    capture.attach()
    for batch in torch.tensor(places, dtype=torch.int64).split(4):
        if len(batch):
            capture.run((IMAGES[batch],), LABELS[batch])
    capture.detach()
    return capture.finish()


def merged(network: str, kind: str) -> Activations:
    acsp_lightning.capture.hooks.INPUT_POSITIONS = 64  # all: which ones are looked at depends on batches
    return merge_over_ranks(lambda: capture_of(network, SHARES[kind][dist.get_rank()]), CPU)


def refused(kind: str) -> str:
    """The message where ranks cannot be merged."""
    network, places = NETWORKS["conv"]().eval(), [] if kind == "nothing" else range(4)
    images = IMAGES[:4, :, : 6 if dist.get_rank() else 5]

    def finish() -> Activations:
        if kind == "error" and dist.get_rank():
            raise KeyError("no label")
        capture = ActivationCapture(network, trace_groups(network, (IMAGES[:2],)).groups[:1], None, 3)
        capture.attach()
        if places:
            capture.expect(LABELS[:4])
            network[:4](images)  # as far as the layer that reads conv1
        capture.detach()
        return capture.finish()

    try:
        merge_over_ranks(finish, CPU)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")


def shared_out(costs: Sequence[float]) -> dict[str, Any]:
    """Who did what, and what came back."""
    done: list[int] = []

    def work(place: int) -> torch.Tensor:
        done.append(place)
        return torch.full((2,), place)

    results = spread("Counting", [lambda place=place: work(place) for place in range(len(costs))], costs)
    return {"done": done, "results": results}


def failing() -> str:
    """The message where one of several works fails."""

    def work(place: int) -> None:
        if place == 1:
            raise ValueError("no curve")

    try:
        spread("Counting", [lambda place=place: work(place) for place in range(3)], [1.0, 1.0, 1.0])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing failed")


def long_work(limit: float, seconds: float) -> dict[str, Any]:
    """Rank 0 works longer than a collective may take; then another lets one wait as long."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=limit), dist.group.WORLD)
    found = on_rank_zero(lambda: time.sleep(seconds) or "decided")
    run_on_all_ranks(lambda: time.sleep(seconds) if dist.get_rank() else None)
    stopped = False
    try:
        if dist.get_rank() == 0:
            time.sleep(seconds)
        dist.all_reduce(torch.zeros(1))
    except RuntimeError:
        stopped = True
    return {"found": found, "stopped": stopped}
