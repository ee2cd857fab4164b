"""The clock waits for a GPU."""

import pytest
import torch
from torch import Tensor, nn

from acsp_lightning import compare_latency, measure_latency

pytestmark = pytest.mark.gpu


class Busy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        torch.cuda._sleep(20_000_000)  # cycles, of which a GPU has 1 to 3 in a nanosecond
        return images


def convolutions() -> tuple[nn.Module, Tensor]:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return network.cuda(), torch.rand(1, 3, 24, 24, device="cuda")


def test_a_gpu_is_waited_for(gpu: torch.device) -> None:
    (busy,) = measure_latency(Busy(), torch.rand(1, 2, device=gpu), (1,), min_runs=3, min_seconds=0)
    assert 0.005 < busy.median < 0.025
    assert busy.device == "cuda:0"
    # Launched while the GPU is busy with the other, it must not seem to be faster than by itself.
    small, images = convolutions()
    (alone,) = measure_latency(small, images, (1,))
    (pair,) = compare_latency(nn.Sequential(Busy(), small), small, images, (1,))
    assert pair.after.median == pytest.approx(alone.median, rel=0.3)


def test_as_cuda_events_have_it(gpu: torch.device) -> None:
    """Of work that takes the GPU longer than the CPU takes to launch it."""
    matrix = torch.rand(4096, 4096, device=gpu)
    network = nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(8))).to(gpu)
    (found,) = measure_latency(network, matrix, (4096,))
    times = []
    with torch.no_grad():
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            network(matrix)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
    assert found.median == pytest.approx(float(torch.tensor(times[2:]).median()), rel=0.15)
