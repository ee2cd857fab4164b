"""How every plot of a report is drawn: its style, its colours and its size."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110
WIDTH = 9.0  # inches; the page need not shrink it
TALLEST = 590.0  # inches; the renderer is limited to fewer than 2 ** 16 pixels
BEFORE, AFTER, MARK, FAINT = "#b8c4d0", "#0072b2", "#d55e00", "#8a8a8a"
LONGEST_NAME = 36
STYLE = {"font.size": 8, "axes.titlesize": 8, "text.parse_math": False}  # $ in a name is no formula
_STYLING = RLock()


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in a fixed style, whatever the style of the process, and restore that."""
    # rc parameters are global to the process: two threads would restore each other's.
    with _STYLING, style.context(["default", STYLE]):
        yield


@house_style()
def png(figure: Figure) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, metadata={"Software": None})
    return sink.getvalue()


def new_figure(height: float) -> Figure:
    """An empty figure of some height, in inches."""
    # No pyplot: no GUI backend and no global state, and figures may be drawn in any thread.
    figure = Figure(figsize=(WIDTH, min(height, TALLEST)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """A name of at most so many letters; the middle of a longer one is left out."""
    if len(name) <= most:
        return name
    return f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
