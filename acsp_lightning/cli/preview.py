"""``acsp-lightning preview``: runs in the Trainer's validation, with devices and data as in a fit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from acsp_lightning.files import atomic_write
from acsp_lightning.measure.time_table import LAYER_TIMES
from acsp_lightning.previewing import check_trade_off, preview_cut
from acsp_lightning.progress import shown_by
from acsp_lightning.report import PruningStep, step_table, trade_off_table, write_report
from acsp_lightning.settings import PruningSettings
from acsp_lightning.trainer.loaders import validation_batches
from acsp_lightning.trainer.progress_bars import display_of


class PreviewCallback(pl.Callback):
    """Previews a cut at the end of a stand-alone validation.

    Args:
        settings: what would be cut, and how, as in :func:`acsp_lightning.preview`.
        shares: shares of the FLOPs to measure a cut at.
        out: folder of the "preview" folder, in which times of layers are kept for the next one.

    Raises:
        ValueError: if there are several, and the settings have no path along which cuts are measured.

    Attributes:
        step: the record of the previewed cut; None before the validation has ended.
    """

    def __init__(self, settings: PruningSettings, shares: Sequence[float] = (), out: str = ".") -> None:
        self.settings = settings
        self._times_file = Path(out, "preview", LAYER_TIMES)
        # A single share may also be met without a path along which cuts are measured.
        measured = settings.selection.by_damage or len(shares) > 1
        self._trade_off = (shares or True) if measured else False
        check_trade_off(self._trade_off, settings)
        self.step: PruningStep | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise ``ValueError`` if there are several processes."""
        check_alone(trainer, "preview")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Preview the cut."""
        # The Trainer validates in inference mode, whose tensors cannot be traced.
        with torch.inference_mode(False), torch.enable_grad(), shown_by(display_of(trainer)):
            self.step = preview_cut(
                pl_module,
                _ValidationBatches(trainer),
                self.settings,
                trainer.datamodule,  # type: ignore[attr-defined]
                trainer.val_dataloaders,
                trade_off=self._trade_off,
                times_file=self._times_file,
            )


def check_alone(trainer: pl.Trainer, command: str) -> None:
    """Raise ``ValueError`` if there are several processes."""
    if trainer.world_size > 1:
        raise ValueError(
            f"A {command} runs in one process; this Trainer has {trainer.world_size}. Set devices=1 "
            "and num_nodes=1."
        )


class _ValidationBatches:
    """The validation batches of the Trainer, which can be iterated repeatedly."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        known = self._trainer.num_val_batches
        return int(known[0]) if known and known[0] != float("inf") else 0

    def __iter__(self) -> Iterator[Any]:
        return validation_batches(self._trainer)


def with_shares_joined(words: Sequence[str]) -> list[str]:
    """Arguments in which the numbers after ``--flops`` are one list, as the parser reads several."""
    joined: list[str] = []
    place = 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        place += 1
        if name != "--flops":
            joined.append(words[place - 1])
            continue
        shares = [value] if equals else []
        while place < len(words) and _is_number(words[place]):
            shares.append(words[place])
            place += 1
        listed = value if value.startswith("[") else f"[{', '.join(shares)}]"
        joined.append(f"--flops={listed}")
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_writable(out: str) -> None:
    """Raise ``ValueError`` early if the folder of a preview cannot be written to."""
    folder = Path(out, "preview")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "table.txt") as draft:
            draft.touch()
    except OSError as error:
        raise ValueError(f"{folder} cannot be made or written to ({error}); set out=.") from error


def write_preview(step: PruningStep | None, out: str) -> str:
    """Write the table and the report of a preview; returns the text to print.

    Raises:
        ValueError: if there was nothing to preview.
    """
    if step is None:
        raise ValueError(
            "There was no validation batch to look at; leave limit_val_batches above 0, and give "
            "the data a val_dataloader."
        )
    table = step_table(step)
    if step.trade_off is not None:
        table = f"{trade_off_table(step.trade_off)}\n\n{table}"
    Path(out, "preview", "table.txt").write_text(table + "\n", encoding="utf-8")
    sums = [] if step.sums is None else [step.sums]
    return "\n\n".join([table, *sums, f"To read: {write_report(step, out)}"])
