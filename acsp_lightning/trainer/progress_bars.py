"""Long steps of a cut beside the Trainer's own progress bar."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.progress import Progress
from tqdm.auto import tqdm

from acsp_lightning.progress import Advance, Display


def display_of(trainer: pl.Trainer) -> Display | None:
    """What shows long steps during a fit, in the manner of the Trainer's bar.

    None on all ranks but the first, where bars are off, and beside a bar of the user's own.
    """
    bar = trainer.progress_bar_callback
    if not trainer.is_global_zero or not isinstance(bar, RichProgressBar | TQDMProgressBar):
        return None
    if bar.is_disabled:
        return None
    if isinstance(bar, RichProgressBar) and bar.progress is not None:
        return _rich(bar.progress)
    return tqdm_display


@contextmanager
def tqdm_display(name: str, parts: int) -> Iterator[Advance]:
    """A bar that goes when the step is done, as those of Lightning's validation do."""
    with tqdm(desc=name, total=parts or None, leave=False, dynamic_ncols=True, file=sys.stdout) as line:

        def advance() -> None:
            line.update()

        yield advance


def _rich(progress: Progress) -> Display:
    @contextmanager
    def show(name: str, parts: int) -> Iterator[Advance]:
        task = progress.add_task(name, total=parts or math.inf)  # Lightning's word for unknown

        def advance() -> None:
            progress.update(task, advance=1, refresh=True)

        try:
            yield advance
        finally:
            # Not removed: Lightning finds its own tasks by their place in the list of all.
            progress.update(task, visible=False)

    return show
