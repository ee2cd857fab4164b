"""The folder of a cut: its record in JSON, its page and its plots."""

import json
from itertools import count
from os import PathLike
from pathlib import Path

from acsp_lightning.files import atomic_write
from acsp_lightning.report.figures import png, step_figures
from acsp_lightning.report.page import step_page
from acsp_lightning.report.step import PruningStep

RECORD, PAGE = "report.json", "report.html"


def step_folder(step: PruningStep) -> str:
    """Name of the folder of a cut."""
    if step.epoch is None:
        return "preview"
    return f"cut_after_epoch_{step.epoch}{'_again' if step.again else ''}"


def write_step(step: PruningStep, root: Path) -> Path:
    """Write the record of a cut into a folder of its own below ``root``; returns that folder.

    The record is written atomically: a killed process leaves at most a temporary file beside it.

    Raises:
        OSError: if it cannot be written.
    """
    folder = _own_folder(step, root)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RECORD, json.dumps(step.to_dict(), indent=1, allow_nan=False).encode())
    return folder


def _own_folder(step: PruningStep, root: Path) -> Path:
    """A folder that holds no record of another cut: two callbacks may cut in one epoch."""
    name = step_folder(step)
    for number in count(2):
        record = root / name / RECORD
        if step.epoch is None or not record.exists() or _plan_in(record) == step.plan.to_dict():
            return record.parent
        name = f"{step_folder(step)}_{number}"
    raise AssertionError("there are always more numbers")


def _plan_in(record: Path) -> object:
    try:
        return json.loads(record.read_text(encoding="utf-8"))["plan"]
    except (ValueError, KeyError, TypeError):
        return None


def draw_step(step: PruningStep, folder: Path) -> Path:
    """Write the plots and the page of a cut into its folder, replacing those that are there.

    Returns:
        Path of the page, a single file that includes the plots.

    Raises:
        OSError: if a file cannot be written.
    """
    plots: dict[str, bytes] = {}
    for name, figure in step_figures(step):
        plots[name] = png(figure)
        _write(folder / f"{name}.png", plots[name])
    for path in folder.glob("*.png"):
        if path.stem not in plots:
            path.unlink()  # of a cut that this one replaces
    _write(folder / PAGE, step_page(step, plots).encode())
    return folder / PAGE


def rewrite_page(step: PruningStep, folder: Path) -> Path:
    """Write the page of a cut again, with the plots that are in its folder; returns the page.

    A fit that was resumed may have begun another folder, without plots; they are drawn then.

    Raises:
        OSError: if a file cannot be read or written.
    """
    plots = {path.stem: path.read_bytes() for path in folder.glob("*.png")}
    if not plots:
        return draw_step(step, folder)
    _write(folder / PAGE, step_page(step, plots).encode())
    return folder / PAGE


def write_report(step: PruningStep, root: str | PathLike[str]) -> Path:
    """Write record, plots and page of a cut into a folder of its own below ``root``.

    Returns:
        Path of the page, a single file that includes the plots.

    Raises:
        OSError: if a file cannot be written.
    """
    return draw_step(step, write_step(step, Path(root)))


def read_step(path: Path) -> PruningStep:
    """Read the record of a cut.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a record of a cut, or one of another version; the message names the
            file.
    """
    try:
        return PruningStep.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is no record of a cut: {error}") from error


def find_records(path: Path) -> list[Path]:
    """Find the records at or below a path: a record, the folder of a cut, of a run or of several runs.

    Raises:
        FileNotFoundError: if there is no such path, or no record below it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a run or of a cut.")
    found = sorted(path.rglob(RECORD), key=_natural)
    if not found:
        raise FileNotFoundError(
            f"There is no {RECORD} in {path} or below: nothing was cut there. A run writes one for "
            "every cut, into acsp/ in its logger's folder unless report_dir= says otherwise."
        )
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts epoch 10 after epoch 9."""
    return [(int("".join(filter(str.isdigit, part)) or 0), part) for part in path.parts]


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(content)
