"""The formats that ``acsp-lightning export`` writes; by themselves, since writing them takes imports."""

from collections.abc import Mapping

FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch.export": ".pt2", "state_dict": ".pt"}
"""How the files of each end."""
