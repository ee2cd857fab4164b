"""What is kept of the network before a cut."""

from pathlib import Path

from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    same_state,
    snapshot,
    widths,
)
from lightning.pytorch.callbacks import ModelCheckpoint

from acsp_lightning import load_pruned


def test_the_last_uncut_network_is_kept(fit: Fit, tmp_path: Path) -> None:
    probe, save = Probe(), ModelCheckpoint(tmp_path / "files", filename="{epoch}")
    fit(Classifier(), [callback(0, 1), probe, save], enable_checkpointing=True)
    for epoch, expected in ((0, WIDTHS), (1, ALL_HALVED)):
        module = load_pruned(Classifier(), tmp_path / "files" / f"uncut-epoch={epoch}.ckpt")
        assert widths(module) == expected
        assert same_state(snapshot(module), probe.states["validation_end", epoch])


def test_no_file_without_a_checkpoint_callback(fit: Fit, tmp_path: Path) -> None:
    fit(Classifier(), [callback()])
    assert list(tmp_path.rglob("*.ckpt")) == []
