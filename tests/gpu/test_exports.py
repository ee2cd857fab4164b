"""A network on a GPU stays there, and its file does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import conv_net
from torch import Tensor

from acsp_lightning import apply_plan
from acsp_lightning.export.formats import export_onnx, export_program
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

pytestmark = pytest.mark.gpu
IMAGES = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_export(suffix: str, device: torch.device, tmp_path: Path) -> None:
    network = conv_net().eval()
    groups = trace_groups(network, (IMAGES[:2],)).groups
    apply_plan(network, build_plan(groups, {group.name: range(3) for group in groups}))
    network, path = network.to(device), tmp_path / f"net{suffix}"
    loaded: Callable[[Tensor], Any]
    if suffix == ".onnx":
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)
        from helpers.exported import run_onnx

        export_onnx(network, IMAGES.to(device), path)
        loaded = lambda x: run_onnx(path, x)[0]  # noqa: E731
    else:
        export_program(network, IMAGES.to(device), path)
        loaded = torch.export.load(path).module()
    assert {p.device.type for p in network.parameters()} == {device.type}
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES), network.cpu()(IMAGES), rtol=1e-4, atol=1e-4)
