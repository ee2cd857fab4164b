"""Compiled networks: captured, counted, cut and compiled anew, as if they had not been compiled."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.compiled import COMPILE, Backend, compile_in_place
from helpers.fits import (
    ALL_HALVED,
    Classifier,
    Fit,
    callback,
    conv_net,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn

import acsp_lightning.pipeline
from acsp_lightning import apply_plan
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.measure.complexity import measure_complexity
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.tracing import trace_groups


class Epochs(pl.Callback):
    """The counts of a backend after each epoch."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.counts: list[tuple[int, int]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.counts.append((self.backend.graphs, self.backend.runs))


class Quiet(Classifier):
    """Its steps neither log nor count, which dynamo would trace with warnings or anew every time."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    assert not is_eager(), "the stance was left behind"


def is_eager() -> bool:
    """Whether the compiler stands back."""
    backend = Backend()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
    return backend.graphs == 0


def plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


@pytest.mark.parametrize("compiled", COMPILE)
def test_a_compiled_fit_is_that_of_the_network_itself(fit: Fit, compiled: Any) -> None:
    eager, expected = Quiet(), callback(0, 1)
    fit(eager, [expected])
    module, pruning, backend = Quiet(), callback(0, 1), Backend()
    epochs = Epochs(backend)
    fit(compiled(module, backend), [pruning, epochs])
    for found, step in zip(pruning.steps, expected.steps, strict=True):
        assert [(plain(c.layer), c.side, c.kept) for c in found.plan] == [
            (c.layer, c.side, c.kept) for c in step.plan
        ]
        assert {plain(n): f for n, f in found.after.by_layer.items()} == step.after.by_layer
        assert found.accuracy_after == step.accuracy_after
    state = {plain(name): tensor for name, tensor in snapshot(module).items()}
    for name, tensor in snapshot(eager).items():
        torch.testing.assert_close(state[name], tensor, msg=name)
    # Compiled before the first cut, and anew after each.
    assert all(g1 < g2 and r1 < r2 for (g1, r1), (g2, r2) in pairwise(epochs.counts))
    assert epochs.counts[0][0] > 0


@pytest.mark.parametrize("compiled", COMPILE)
def test_layer_names_fit_the_module_that_was_pruned(fit: Fit, compiled: Any) -> None:
    module, pruning = Quiet(), callback()
    fit(compiled(module, Backend()), [pruning], max_epochs=2)
    other = Quiet()
    compiled(other, Backend())
    apply_plan(other, pruning.steps[0].plan)
    assert {plain(name): width for name, width in widths(other).items()} == ALL_HALVED
    other.load_state_dict(module.state_dict())


def test_many_cuts_are_all_compiled(fit: Fit) -> None:
    """The compiler gives up after so many shapes of one function, unless it starts afresh."""
    module, backend = Quiet(), Backend()
    epochs = Epochs(backend)
    with torch._dynamo.config.patch(recompile_limit=2):
        fit(compile_in_place(module, backend), [callback(0, 1, 2), epochs], max_epochs=4)
    runs = [runs for _, runs in epochs.counts]
    # Four training batches, and three of the only validation that is not captured.
    assert [after - before for before, after in pairwise(runs)] == [4, 4, 4 + 3]


@pytest.mark.parametrize("compiled", COMPILE)
@pytest.mark.parametrize("averaging", [EMAWeightAveraging, partial(StochasticWeightAveraging, 0.01)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
def test_averages_of_compiled_networks(fit: Fit, compiled: Any, averaging: Any) -> None:
    module, pruning = Quiet(), callback()
    fit(compiled(module, Backend()), [averaging(), pruning])
    assert {plain(name): width for name, width in widths(module).items()} == ALL_HALVED


@pytest.mark.parametrize("compiled", COMPILE)
def test_the_uncut_network_is_timed_with_its_own_weights(
    fit: Fit, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled forward that was copied as it is would run the network that has been cut."""
    images, seen, backend = torch.rand(2, 1, 6, 6), [], Backend()

    def compare(before: nn.Module, after: nn.Module, *_: Any) -> tuple[()]:
        runs = backend.runs
        for model in (before, after):
            (last,) = [module for name, module in model.named_modules() if name.endswith("fc2")]
            read: list[torch.Size] = []
            hook = last.register_forward_pre_hook(lambda _, x, read=read: read.append(x[0].shape))
            with evaluation_state(model):
                model(images)
            hook.remove()
            seen.append(read)
        assert backend.runs == runs
        return ()

    monkeypatch.setattr(acsp_lightning.pipeline, "compare_latency", compare)
    fit(compiled(Quiet(), backend), [callback(latency_batch_sizes=[1])], max_epochs=2)
    assert seen == [[(2, 10)], [(2, 5)]]


@pytest.mark.parametrize("compiled", COMPILE)
def test_operations_of_a_compiled_network(compiled: Any) -> None:
    images = torch.rand(1, 1, 6, 6)
    expected = measure_complexity(Quiet(), images)
    module, backend = Quiet(), Backend()
    model = compiled(module, backend)
    attributes = [dict(vars(m)) for m in model.modules()]
    found = measure_complexity(model, images)
    assert (found.flops, found.parameters) == (expected.flops, expected.parameters)
    assert {plain(n): flops for n, flops in found.by_layer.items()} == expected.by_layer
    assert backend.graphs == 0
    with pytest.raises(ValueError, match="forward pass"):
        measure_complexity(model, torch.rand(1, 2, 6, 6))
    for module, before in zip(model.modules(), attributes, strict=True):
        assert all(vars(module)[name] is value for name, value in before.items())
    model(images)
    assert backend.runs > 0


def test_a_compiled_method_is_traced_too() -> None:
    class Net(nn.Module):
        def __init__(self, backend: Backend) -> None:
            super().__init__()
            self.net = conv_net()
            self.features = torch.compile(self.features, backend=backend)

        def features(self, images: torch.Tensor) -> Any:
            return self.net(images)

        def forward(self, images: torch.Tensor) -> Any:
            return self.features(images)

    backend = Backend()
    model = Net(backend)
    images = torch.rand(2, 1, 6, 6)
    model(images)
    assert backend.runs == 1
    groups = trace_groups(model, (images,)).groups
    assert [group.name for group in groups] == ["net.conv1", "net.conv2", "net.fc1"]
    assert measure_complexity(model, images).flops == measure_complexity(conv_net(), images).flops
    with evaluation_state(model):
        run_forward(model, (images,))
    assert backend.runs == 1


def test_captures_that_overlap_share_the_stance() -> None:
    model = conv_net()
    groups = trace_groups(model, (torch.rand(2, 1, 6, 6),)).groups
    first, second = (ActivationCapture(model, groups, None, num_classes=3) for _ in range(2))
    first.attach()
    second.attach()
    first.detach()
    assert is_eager()
    first.detach()
    assert is_eager()
    second.detach()
    assert not is_eager()


def test_hooks_of_an_attached_capture_see_a_network_compiled_before() -> None:
    backend = Backend()
    model = conv_net()
    images, labels = torch.rand(6, 1, 6, 6), torch.arange(6) % 3
    groups = trace_groups(model, (images,)).groups
    model.compile(backend=backend)
    model(images)
    capture = ActivationCapture(model, groups, None, num_classes=3)
    capture.attach()
    capture.expect(labels)
    model(images)
    capture.detach()
    assert capture.finish().samples == 6
    assert backend.runs == 1
    model(images)
    assert backend.runs == 2


@pytest.mark.parametrize("error", [RuntimeError("no luck"), KeyboardInterrupt()])
def test_no_stance_remains_after_an_exception(fit: Fit, error: BaseException) -> None:
    class Failing(Quiet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if not self.trainer.sanity_checking:
                assert is_eager()
                raise error

    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError):
        fit(Failing(), [callback(), callback(1)])
    assert not is_eager()


def test_no_stance_remains_after_a_capture_that_failed(fit: Fit) -> None:
    def broken(batch: Any) -> Any:
        if len(batch[1]) < 6:
            raise ValueError("no labels")
        return batch[0], batch[1]

    with pytest.raises(ValueError, match="no labels"):
        fit(Quiet(), [callback(read_batch=broken)], val=val_loader(9), train=train_loader())
    assert not is_eager()
