"""``acsp-lightning profile``: times a network on this machine, for a cut that is decided elsewhere."""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from acsp_lightning.capture.batches import survey
from acsp_lightning.cli.preview import check_alone
from acsp_lightning.measure.time_table import Profile
from acsp_lightning.pipeline import NO_BATCH
from acsp_lightning.progress import shown_by
from acsp_lightning.selection.clock import TORCH, Runtime
from acsp_lightning.selection.examination import trace
from acsp_lightning.selection.time_target import profile
from acsp_lightning.settings import PruningSettings
from acsp_lightning.trainer.loaders import validation_batches
from acsp_lightning.trainer.progress_bars import display_of


class ProfileCallback(pl.Callback):
    """Times the network and its layers at the end of a stand-alone validation.

    Args:
        settings: which widths are possible, and under what conditions a pass counts.
        runtime: what runs the network and its layers.

    Attributes:
        times: what was measured; None before the validation has ended.
    """

    def __init__(self, settings: PruningSettings, runtime: Runtime = TORCH) -> None:
        self.settings = settings
        self.runtime = runtime
        self.times: Profile | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise ``ValueError`` if there are several processes."""
        check_alone(trainer, "profile")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time what could be cut."""
        # The Trainer validates in inference mode, whose tensors cannot be traced.
        with torch.inference_mode(False), torch.enable_grad(), shown_by(display_of(trainer)):
            batches = islice(validation_batches(trainer), 1)
            example, _ = survey(pl_module, batches, self.settings.read_batch)
            if example is not None:
                groups = trace(pl_module, example, self.settings).groups
                self.times = profile(
                    pl_module, groups, example.counted, self.settings, rank_zero_info, self.runtime
                )


def runtime_of(name: str) -> Runtime:
    """What runs networks that are timed, by its name.

    Raises:
        ImportError: if a package that it needs is missing.
    """
    if name == "torch":
        return TORCH
    from acsp_lightning.export.onnx_times import onnxruntime

    return onnxruntime()


def check_target(out: str) -> None:
    """Raise ``ValueError`` early if a file cannot be written."""
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}); set out=.") from error


def write_profile(times: Profile | None, out: str) -> str:
    """Write what was measured; returns the text to print.

    Raises:
        ValueError: if there was nothing to measure with.
    """
    if times is None:
        raise ValueError(NO_BATCH)
    times.write(Path(out))
    uncut = times.networks[0].times.before
    least = min(1 / network.times.speedup for network in times.networks)
    return (
        f"{len(times.layers)} layers; the network takes {1000 * uncut.median:.3g} ms "
        f"({times.latency_at}, {uncut.device}, {uncut.threads} threads), and {least:.3f} of it if it is "
        f"cut as far as may be.\nFor the machine that trains: latency_table={out}"
    )
