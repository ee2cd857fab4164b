"""The style of plots: the same everywhere, and nowhere else."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib
from helpers.records import step, viewed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from acsp_lightning import PruningStep
from acsp_lightning.report.drawing import png
from acsp_lightning.report.figures import step_figures


def figures(of: PruningStep) -> dict[str, Figure]:
    return dict(step_figures(of))


def test_plots_are_png_and_the_same_every_time() -> None:
    first, second = (png(figures(viewed())["layer.conv"]) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as plot:
        assert plot.format == "PNG"
        assert plot.width == 990


def test_plots_do_not_depend_on_the_style_of_the_process_and_leave_it() -> None:
    plain = png(figures(viewed())["layer.conv"])
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        assert png(figures(viewed())["layer.conv"]) == plain
        assert dict(matplotlib.rcParams) == before


def test_plots_can_be_drawn_in_threads() -> None:
    before = dict(matplotlib.rcParams)
    (plain,) = {png(figures(viewed())["channels"])}
    with ThreadPoolExecutor(2) as threads:
        found = set(threads.map(lambda _: png(figures(viewed())["channels"]), range(4)))
    assert found == {plain}
    assert dict(matplotlib.rcParams) == before
    assert type(figures(step())["channels"].canvas) is FigureCanvasAgg


def test_a_name_is_no_formula() -> None:
    assert png(figures(replace(step(), layers={r"a$\frac$b": (2, 1)}))["channels"])
