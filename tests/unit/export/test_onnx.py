import logging

import numpy as np
import pytest
import torch
from torch import nn

from acsp_lightning.export import onnx
from acsp_lightning.export.onnx import LOGGERS, onnx_package, open_onnx, quiet, write_onnx


def test_a_file_runs_as_its_network(tmp_path):
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8)
    path = tmp_path / "layer.onnx"
    write_onnx(torch.export.export(layer, (images,)), path, [None])
    for file in (path, path.read_bytes()):
        (found,) = open_onnx(file)((images,))
        torch.testing.assert_close(found, layer(images).detach())


def test_a_missing_package_is_named_with_the_extra():
    assert onnx_package("numpy") is np
    with pytest.raises(ImportError, match=r"nowhere cannot be imported .*acsp-lightning\[export\]"):
        onnx_package("nowhere")


def test_loggers_are_as_before():
    loggers = [logging.getLogger(name) for name in LOGGERS]
    loggers[0].disabled = True
    with quiet():
        assert all(logger.disabled for logger in loggers)
    assert [logger.disabled for logger in loggers] == [True, False]
    loggers[0].disabled = False
    assert onnx.LOGGERS is LOGGERS
