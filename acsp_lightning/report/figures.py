"""Pictures of a cut."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from acsp_lightning.report.step import PruningStep


def step_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """Pictures by name."""
    yield from ()


def summary_figures(step: PruningStep) -> Iterator[tuple[str, Figure]]:
    """Pictures by name."""
    yield from ()


def png(figure: Figure) -> bytes:
    """A picture as PNG."""
    return b""
