"""What a cut costs at the size of ImageNet; in small on the CPU, where times mean nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.memory import peak_of
from torch import Tensor, nn
from torchvision.models import resnet50

from acsp_lightning import LatencyAt, PruningSettings, SelectionConfig
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.functional import ClassMoments, compare_channels, sweep_k_medoids
from acsp_lightning.functional.least_squares import LeastSquares
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.structure.verification import prunable_groups
from acsp_lightning.zoo import resnet20

pytestmark = pytest.mark.gpu
CAPTURE = 1.15  # times a plain validation
CUT = 20.0  # seconds
MEMORY = 2**30  # bytes beyond a plain validation


@dataclass(frozen=True)
class Size:
    network: Callable[..., nn.Module]
    side: int
    batch: int
    batches: int
    classes: int
    samples: int  # that a cut looks at


LARGE = Size(resnet50, 224, 256, 50, 1000, 512)
SMALL = Size(resnet20, 16, 8, 5, 4, 16)


@pytest.fixture
def size(device: torch.device) -> Size:
    return LARGE if device.type == "cuda" else SMALL


@pytest.fixture
def network(size: Size, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return size.network(num_classes=size.classes).eval().to(device)


@pytest.fixture
def batches(size: Size, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """One batch of pictures again and again, with all labels in turn."""
    images = torch.randn(size.batch, 3, size.side, size.side, device=device)
    labels = torch.arange(size.batch * size.batches, device=device) % size.classes
    return [(images, found) for found in labels.split(size.batch)]


def waited(device: torch.device) -> float:
    """The time when all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def validate(
    network: nn.Module,
    batches: Sequence[Any],
    device: torch.device,
    capture: ActivationCapture | None = None,
) -> float:
    """Seconds of a validation in bfloat16."""
    start = waited(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for images, labels in batches:
            if capture is not None:
                capture.expect(labels)
            network(images)
    return waited(device) - start


def peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors of the device take meanwhile, beyond those there are."""
    if device.type == "cpu":
        return peak_of(work)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def test_a_capture(size: Size, network: nn.Module, batches: list[Any], device: torch.device) -> None:
    groups = prunable_groups(network, (batches[0][0][:2],)).groups
    validate(network, batches[:3], device)
    plain = min(validate(network, batches, device) for _ in range(2))
    captured = []
    for _ in range(2):
        capture = ActivationCapture(network, groups, 1, size.classes)
        capture.attach()
        try:
            captured.append(validate(network, batches, device, capture))
        finally:
            capture.detach()
        activations = capture.finish()
    ratio = min(captured) / plain
    print(f"\ncapture: {ratio:.2f} x plain validation of {1000 * plain:,.0f} ms")
    assert activations.samples == size.batch * size.batches
    assert {sums.total.device.type for sums in activations.outputs.values()} == {device.type}
    assert device.type == "cpu" or ratio <= CAPTURE


@pytest.mark.filterwarnings("ignore")  # of a network that was never trained
def test_a_whole_cut(size: Size, network: nn.Module, batches: list[Any], device: torch.device) -> None:
    """Beyond a validation with batches of the same size, in the same precision as the cut."""
    settings = PruningSettings(
        selection=SelectionConfig(flops=0.5, min_channels=2),
        recovery_samples=size.samples,
        measured_samples=size.samples,
    )
    example, captured = capture_network(network, batches, settings)
    site = CopySite(network, batches)

    def plain() -> None:
        with torch.no_grad():
            network(batches[0][0])

    def cut() -> nn.Module:
        return site.prune(*decide_cut(site, captured, settings, example))

    plain()
    start = waited(device)
    smaller = cut()
    seconds = waited(device) - start
    if device.type == "cpu":  # counting takes part of the network for another
        print(f"\nwhole cut: {1000 * seconds:,.0f} ms")
        assert numel(smaller) < numel(network)
        return
    del smaller
    extra = peak(cut, device) - peak(plain, device)
    print(f"\nwhole cut: {1000 * seconds:,.0f} ms, {extra / 2**20:,.0f} MB beyond a validation")
    assert seconds <= CUT
    assert extra <= MEMORY


def numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def made_up(classes: int, channels: int, positions: int, device: torch.device) -> ClassMoments:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(classes, channels, positions, generator=generator, dtype=torch.float64)
    variance = 0.5 + torch.rand(classes, channels, positions, generator=generator, dtype=torch.float64)
    count = torch.full((classes,), 50)
    return ClassMoments(count.to(device), mean.to(device), 50 * variance.to(device))


def seconds_of(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """The faster of two runs."""
    times = []
    for _ in range(2):
        start = waited(device)
        found = work()
        times.append(waited(device) - start)
    return min(times), found


def test_comparing_and_clustering(device: torch.device) -> None:
    """On the device, with the result of the CPU."""
    shape = (1000, 512, 4) if device.type == "cuda" else (12, 24, 2)
    moments, small = made_up(*shape, device), made_up(12, 24, 2, device)
    pairs = shape[0] * (shape[0] - 1) // 2
    values = torch.rand(min(pairs, 2**16), shape[1], device=device)

    def unavoidable() -> None:
        """A part of the exponentials and of the half product, in float32."""
        torch.exp(values)
        values[: len(values) // 2].T @ values[: len(values) // 2]

    seconds, found = seconds_of(lambda: compare_channels(moments), device)
    least = seconds_of(unavoidable, device)[0] * pairs * shape[2] / len(values)
    swept, _ = seconds_of(lambda: sweep_k_medoids(found.distances), device)
    print(
        f"\ndistances C={shape[0]} N={shape[1]} P={shape[2]}: {1000 * seconds:,.0f} ms, "
        f"{seconds / least:.2f} x unavoidable; sweep over every k: {1000 * swept:,.0f} ms"
    )
    assert found.distances.device.type == device.type
    expected = compare_channels(made_up(12, 24, 2, torch.device("cpu"))).distances
    torch.testing.assert_close(compare_channels(small).distances.cpu(), expected, rtol=1e-5, atol=1e-6)


class RoundTrips(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often somebody asks a tensor for a value, for which a CPU waits for its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.partition(".")[0] in ("_local_scalar_dense", "nonzero", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("samples", [8192, 100], ids=["products", "rows"])
def test_a_refit_asks_its_device_once(samples: int, device: torch.device) -> None:
    """Whether all samples are finite; however many parts they come in."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 576, generator=generator).to(device)
    targets = torch.randn(samples, 64, generator=generator).to(device)
    weight, bias = torch.zeros(64, 576, device=device), torch.zeros(64, device=device)

    def fit() -> tuple[Tensor, Tensor | None]:
        found = LeastSquares(samples, weight, bias)
        for part, wanted in zip(inputs.split(1024), targets.split(1024), strict=True):
            found.add(part, wanted)
        return found.solve()

    seconds, (found, _) = seconds_of(fit, device)
    print(f"\nrefit of 576 inputs to {samples} samples: {1000 * seconds:.1f} ms")
    assert found.device.type == device.type
    with RoundTrips() as trips:
        fit()
    assert trips.count == 1


@pytest.mark.filterwarnings("ignore")  # of a network that was never trained
def test_a_share_of_the_time(
    size: Size, network: nn.Module, batches: list[Any], gpu: torch.device
) -> None:
    """As the events of a GPU have it, which took no part in the decision."""
    images = batches[0][0]
    settings = PruningSettings(
        selection=SelectionConfig(latency=0.75, curve="damage", min_channels=2),
        latency_at=LatencyAt(batch_size=len(images)),
        recovery="fold",
        recovery_samples=size.samples,
    )
    example, captured = capture_network(network, batches[:5], settings)
    site = CopySite(network, batches[:5])
    smaller = site.prune(*decide_cut(site, captured, settings, example))
    before, after = (milliseconds(model, images) for model in (network, smaller))
    print(f"\nlatency=0.75: {before:.1f} ms before, {after:.1f} ms after, {after / before:.2f}")
    assert after / before <= 0.8


def milliseconds(model: nn.Module, images: Tensor) -> float:
    """Median of some passes, by events."""
    times = []
    with torch.no_grad():
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            model(images)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    return float(torch.tensor(times[2:]).median())
