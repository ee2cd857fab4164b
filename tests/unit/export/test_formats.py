"""What stands in exported files, as other programs run them."""

import logging
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from helpers.exported import outputs, run_onnx
from helpers.fits import Classifier, Fit, conv_net, hooks, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning import zoo
from acsp_lightning.export.formats import export_onnx, export_program, export_state_dict
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.verification import prunable_groups


def mobilenet() -> nn.Module:
    """MobileNet-V2 with two stages, and logits of a usual size."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 2]]
    network = torchvision.models.MobileNetV2(10, width_mult=0.25, inverted_residual_setting=stages)
    nn.init.normal_(network.classifier[1].weight)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (conv_net, (1, 6, 6)),
    "residual": (zoo.resnet20, (3, 16, 16)),
    "concat": (lambda: zoo.DenseNet([2, 2], growth=5, stem=8), (3, 8, 8)),
    "depthwise": (mobilenet, (3, 16, 16)),
}
EXPORTS = {".onnx": export_onnx, ".pt2": export_program}


def noise(samples: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))


def ragged(name: str) -> nn.Module:
    """A network really cut, to widths that divide nothing, with BatchNorm statistics of its inputs."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, images = build(), noise(8, *shape)
    groups = prunable_groups(network, (images,), residual=True).groups
    kept = {}
    for place, group in enumerate(groups):
        count = min(group.width - 1, 3 + 2 * (place % 3))
        kept[group.name] = list(range(group.width))[-count:]
    prune(network, build_plan(groups, kept), (images,))
    recalibrate_batchnorm(network.train(), [images], 1)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_files_compute_what_the_cut_network_does(name: str, tmp_path: Path) -> None:
    network, shape = ragged(name), NETWORKS[name][1]
    onnx = export_onnx(network, noise(4, *shape), tmp_path / "net.onnx")
    program = export_program(network, noise(4, *shape), tmp_path / "net.pt2")
    weights = export_state_dict(network, tmp_path / "net.pt")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for samples in (1, 2, 7):
        images = noise(samples, *shape, seed=samples)
        expected = outputs(network, images)
        (found,) = run_onnx(tmp_path / "net.onnx", images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-4)
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    assert same_state(state, network.state_dict())

    for file, form in ((onnx, "onnx"), (program, "torch.export"), (weights, "state_dict")):
        assert (file.format, file.size) == (form, file.path.stat().st_size)
    assert onnx.batch_sizes == program.batch_sizes == (4, 1)
    assert onnx.difference <= 1e-4 <= onnx.allowed
    assert (weights.batch_sizes, weights.difference, weights.allowed) == ((), 0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.pt2", "net.pt"}


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_module_in_a_fit_is_left_as_it_was(suffix: str, fit: Fit, tmp_path: Path, capfd: Any) -> None:
    module = Classifier(conv_net(dropout=0.5))
    trainer = fit(module, max_epochs=1)
    module.train()
    module.net.bn1.eval()
    module.net.fc1.weight.requires_grad_(False)
    seen: list[int] = []
    module.net.conv1.register_forward_hook(lambda *_: seen.append(1))
    module.trainer = trainer
    module(noise(2, 1, 6, 6)).sum().backward()
    gradient = module.net.conv1.weight.grad.clone()
    before, tensors = snapshot(module), [id(t) for t in (*module.parameters(), *module.buffers())]
    flags = [(m.training, hooks(m)) for m in module.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    capfd.readouterr()

    EXPORTS[suffix](module, noise(3, 1, 6, 6), tmp_path / f"net{suffix}")
    assert capfd.readouterr() == ("", "")
    assert module.trainer is trainer
    assert same_state(snapshot(module), before)
    assert [id(t) for t in (*module.parameters(), *module.buffers())] == tensors
    assert [(m.training, hooks(m)) for m in module.modules()] == flags
    assert not module.net.fc1.weight.requires_grad
    assert torch.equal(module.net.conv1.weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)


class Named(nn.Module):
    """Two tensors in a dict, a vector that is no batch, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor], offset: Tensor, times: int = 1) -> Any:
        return {"sum": self.layer(batch["x"]) * times + offset, "rest": [batch["weight"] + 1]}


def test_inputs_by_name_and_by_place(tmp_path: Path) -> None:
    network, offset = Named(), torch.randn(2)

    def arguments(samples: int) -> tuple[Any, ...]:
        return {"x": noise(samples, 3), "weight": noise(samples, 1)}, offset, 5

    export_onnx(network, arguments(4), tmp_path / "net.onnx")
    export_program(network, arguments(4), tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    batch, *_ = arguments(6)
    expected = [network.layer(batch["x"]) * 5 + offset, batch["weight"] + 1]
    found = run_onnx(tmp_path / "net.onnx", batch["x"], batch["weight"], offset)
    torch.testing.assert_close(found, [e.detach() for e in expected])
    program = loaded(*arguments(6))
    torch.testing.assert_close([program["sum"], *program["rest"]], expected)


def test_one_sample_is_enough(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    for suffix, write in EXPORTS.items():
        assert write(network, noise(1, 3), tmp_path / f"net{suffix}").batch_sizes == (1, 3)
    (found,) = run_onnx(tmp_path / "net.onnx", noise(9, 3))
    torch.testing.assert_close(found, network(noise(9, 3)).detach())


def test_the_batch_axis_is_named(tmp_path: Path) -> None:
    export_onnx(conv_net(), noise(4, 1, 6, 6), tmp_path / "net.onnx")
    (entry,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").get_inputs()
    assert entry.name == "input"
    assert entry.shape == ["batch", 1, 6, 6]


def test_no_sample_of_the_user_is_in_the_file(tmp_path: Path) -> None:
    secret = torch.full((4, 3), 1234.5678)
    bytes_of_it = struct.pack("<3f", *[1234.5678] * 3)
    network = nn.Linear(3, 2)
    usual = torch.export.export(network, (secret,))
    torch.export.save(usual, tmp_path / "usual.pt2")
    assert bytes_of_it in (tmp_path / "usual.pt2").read_bytes()
    for suffix, write in EXPORTS.items():
        write(network, secret, tmp_path / f"net{suffix}")
        assert bytes_of_it not in (tmp_path / f"net{suffix}").read_bytes()


class Broken(nn.Module):
    """Does in ``forward`` what it is told to."""

    def __init__(self, compute: Callable[[nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(self.layer, x)


class TwoFaced(nn.Module):
    """Gives 4 while it is exported, and 2 otherwise; counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 0 * x + (4 if torch.compiler.is_exporting() else 2)


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_file_that_computes_something_else_is_not_kept(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_text("earlier")
    network = TwoFaced()
    # 1e-4 of the largest output is allowed.
    with pytest.raises(ValueError, match=r"of TwoFaced by up to 2; 0\.0002 is allowed\. No file was"):
        EXPORTS[suffix](network, noise(4, 3), path)
    assert network.calls == 0
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda layer, x: layer(x) if x.sum() > 0 else x, "cannot be exported to .*data-dependent"),
        (lambda layer, x: layer(x) if len(x) > 2 else x, "for batches of any size: .*batch"),
        (lambda layer, x: layer(x).view(4, -1), r"fails on tensor \(1, 3\), one of two batches"),
        (lambda layer, x: layer(x[:, :2]), r"fails on tensor \(4, 3\), .*: RuntimeError: mat1"),
        (lambda layer, x: None, "Broken returns no tensor"),
    ],
)
@pytest.mark.parametrize("suffix", EXPORTS)
def test_what_cannot_be_exported_is_said_in_one_line(
    suffix: str, compute: Any, message: str, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EXPORTS[suffix](Broken(compute), noise(4, 3), tmp_path / f"net{suffix}")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("suffix", EXPORTS)
def test_outputs_that_are_no_tensors_are_passed_over(
    suffix: str, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    network = Broken(lambda layer, x: {"logits": layer(x), "loss": None})
    assert EXPORTS[suffix](network, noise(4, 3), tmp_path / f"net{suffix}").difference < 1e-6
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_type_that_onnx_runtime_lacks(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(ValueError, match="the file does not run: NotImplemented"):
        export_onnx(nn.Linear(3, 2).bfloat16(), noise(4, 3).bfloat16(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} cannot .*pip install 'acsp-lightning\[export\]'"):
        export_onnx(nn.Linear(3, 2), noise(4, 3), tmp_path / "net.onnx")


@pytest.mark.parametrize("suffix", EXPORTS)
@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.empty(0, 3), ValueError, r"tensor \(0, 3\)\) has no sample"),
        (torch.tensor(1.0), ValueError, "has no sample"),
        (({"x": 3},), ValueError, "has no sample"),
        ([torch.ones(1, 3)], TypeError, "tuple of positional arguments; found list"),
    ],
)
def test_inputs_without_a_batch(
    suffix: str, inputs: Any, error: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        EXPORTS[suffix](nn.Linear(3, 2), inputs, tmp_path / f"net{suffix}")


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    network, inputs = nn.Linear(3, 2), noise(2, 3)
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.pt2 is a folder"):
        export_program(network, inputs, tmp_path / "folder.pt2")
    with pytest.raises(NotADirectoryError, match=r"There is no folder .*nowhere"):
        export_onnx(network, inputs, tmp_path / "nowhere" / "net.onnx")
    with pytest.raises(NotADirectoryError, match=r"There is no folder .*nowhere"):
        export_state_dict(network, tmp_path / "nowhere" / "net.pt")
    with pytest.raises(ValueError, match=r"'net\.onnx' does not end in \.pt2"):
        export_program(network, inputs, tmp_path / "net.onnx")


def test_a_full_disk_leaves_what_was_there(monkeypatch: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    export_state_dict(nn.Linear(3, 2), path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for write in (export_onnx, export_program):
        with pytest.raises(OSError, match="No space left"):
            write(nn.Linear(3, 2), noise(2, 3), path.with_suffix(".pt2"))
    with pytest.raises(OSError, match="No space left"):
        export_state_dict(nn.Linear(5, 2), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


class WithExtra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}


def test_a_state_that_is_not_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WithExtra has '_extra_state', a dict; a plain state dict"):
        export_state_dict(WithExtra(3, 2), tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_kept(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    nn.init.constant_(network.bias, np.nan)
    export_state_dict(network, tmp_path / "net.pt")
    assert torch.load(tmp_path / "net.pt", weights_only=True)["bias"].isnan().all()
    with pytest.raises(ValueError, match="by up to nan"):
        export_program(network, noise(2, 3), tmp_path / "net.pt2")
