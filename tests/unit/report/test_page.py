"""The page of a cut, parsed, and opened in a real browser."""

import io
import os
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers.records import step, viewed
from PIL import Image, ImageColor

from acsp_lightning import PruningStep, SelectionConfig
from acsp_lightning.functional import WidthReason, select_channels
from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.report import write_report
from acsp_lightning.report.figures import AFTER, BEFORE, MARK, layer_plot
from acsp_lightning.report.page import STYLE, step_page
from acsp_lightning.report.step import Outcome, Verdict

NAME = "net.<b>&\"'conv"


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def of(self, kind: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == kind]


def page_of(found: PruningStep) -> Page:
    """The page with stand-ins for the plots."""
    names = ["network", "channels", "flops", "curves", *map(layer_plot, found.maps)]
    return Page(step_page(found, dict.fromkeys(names, b"plot")))


def renamed() -> PruningStep:
    found = viewed()
    return replace(
        found,
        layers={NAME: (6, 3)},
        selections={NAME: found.selections["conv"]},
        maps={NAME: found.maps["conv"]},
    )


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    page = page_of(viewed())
    assert not page.open
    assert not page.of("script")
    assert not page.of("link")
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.of("img"))
    assert all(str(link["href"]).startswith("#") for link in page.of("a"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {str(link["href"])[1:] for link in page.of("a")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_every_plot_is_there_with_words(tmp_path: Path) -> None:
    page = Page(write_report(viewed(), tmp_path).read_text())
    assert [image["alt"] for image in page.of("img")] == [
        "Damage over FLOPs",
        "Channels of every layer",
        "FLOPs of every layer",
        "conv: its channels, and the classes that they separate",
    ]
    assert len(page.of("figcaption")) == len(page.of("img"))
    # What all plots of groups show is said once.
    assert page.text.count("every dot is a channel") == 1
    for image in page.of("img"):
        with Image.open(io.BytesIO(b64decode(str(image["src"]).partition(",")[2]))) as plot:
            assert plot.format == "PNG"


def test_plots_that_are_missing_are_left_out() -> None:
    page = Page(step_page(viewed(), {}))
    assert not page.of("img")
    assert "3 of 6 channels stay" in page.text


def test_names_are_text_whatever_is_in_them() -> None:
    page = page_of(renamed())
    assert not page.of("b")
    assert page.text.count(NAME) == 3  # contents, table and heading
    assert page.of("img")[-1]["alt"] == f"{NAME}: its channels, and the classes that they separate"


def test_the_figures_are_those_of_the_record() -> None:
    text = page_of(viewed()).text
    for figure in ("6,000", "3,000", "2.00x less", "75.00%", "50.00%", "-25.00 points", "2.00x as fast"):
        assert figure in text
    assert "18 validation samples of 3 classes were captured" in text
    assert "2 classes had fewer than two samples and were left out" in text
    assert "distances are right to 25.0% of their median" in text
    assert "Guard: cut after epoch 4 recovered (val_acc 0.7500 -> 0.7000)" in text
    kept = viewed().selections["conv"].kept.tolist()
    assert ", ".join(map(str, kept)) in text
    assert "3 of 6 channels stay: knee of the network's damage against its FLOPs." in text
    assert "1 of 1 layers become narrower. A forward pass then takes 50% of the operations" in text


def test_what_was_lost_and_gained_is_in_one_table() -> None:
    page = page_of(viewed())
    (totals, *_) = page.tables
    assert totals == [
        ["", "before", "straight after", "change", "at the end", "change"],
        ["parameters", "6,000", "3,000", "2.00x less", "2,500", "2.40x less"],
        ["FLOPs (fvcore)", "60,000", "30,000", "2.00x less", "25,000", "2.40x less"],
        ["accuracy", "75.00%", "50.00%", "-25.00 points", "94.44%", "+19.44 points"],
        ["latency, batch 1 (cpu), ms", "2.00", "1.00", "2.00x as fast", "", ""],
        ["latency, batch 32 (cpu), ms", "64.00", "32.00", "2.00x as fast", "", ""],
    ]
    (totals, *_) = page_of(replace(viewed(), end=None)).tables
    assert totals[0] == ["", "before", "straight after", "change"]
    assert totals[3] == ["accuracy", "75.00%", "50.00%", "-25.00 points"]


def test_every_class_has_its_accuracy_under_its_name() -> None:
    page = page_of(viewed())
    (table,) = (table for table in page.tables if table[0][0] == "class")
    assert table == [
        ["class", "samples", "before", "straight after", "at the end", "change in points"],
        ["ant", "6", "100.0%", "50.0%", "100.0%", "+0.0"],
        ["bee", "6", "66.7%", "83.3%", "100.0%", "+33.3"],
        ["<eel>", "6", "50.0%", "16.7%", "83.3%", "+33.3"],
    ]
    assert "0 of 3 classes have less of it at the end of the fit, 2 have more" in page.text
    page = page_of(replace(viewed(), end=None, class_names=("ant",)))
    (table,) = (table for table in page.tables if table[0][0] == "class")
    assert table[1:] == [
        ["ant", "6", "100.0%", "50.0%", "-50.0"],
        ["1", "6", "66.7%", "83.3%", "+16.7"],
        ["4", "6", "50.0%", "16.7%", "-33.3"],
    ]
    assert "2 of 3 classes have less of it straight after the cut, 1 have more" in page.text
    assert "Classes" not in page_of(step()).text


@pytest.mark.parametrize("classes", [100, 1000])
def test_of_many_classes_those_that_lose_most_come_first(classes: int) -> None:
    seen = torch.full((classes,), 100)
    after = torch.arange(classes) * 97 % 101
    counts = {"classes_before": ClassCounts(seen, seen), "classes_after": ClassCounts(after, seen)}
    many = replace(viewed(), end=None, **counts)
    page = page_of(many)
    worst, everything = (table[1:] for table in page.tables if table[0][0] == "class")
    assert [row[0] for row in everything[5:]] == [str(index) for index in range(5, classes)]
    assert len(everything) == classes
    assert [row[3] for row in worst] == [f"{share}.0%" for share in after.sort().values[:15].tolist()]


def test_the_layers_left_whole_are_named_with_the_reason() -> None:
    page = page_of(viewed())
    (table,) = (table for table in page.tables if table[0][0] == "layer" and len(table[0]) == 2)
    assert table[1] == ["stem", "forward fails after a cut (ValueError: <three> channels)"]
    assert {"href": "#whole"} in page.of("a")
    assert "Left whole" not in page_of(step()).text


@pytest.mark.parametrize(
    ("reason", "plot", "words"),
    [
        (WidthReason.NETWORK_KNEE, "network", "The knee of this curve decided"),
        (WidthReason.LEAST_DAMAGE, "network", "The FLOPs target decided"),
        (WidthReason.NO_NETWORK_KNEE, "network", "It has no knee, so every channel is kept"),
        (WidthReason.KNEE, "curves", "The knee of its own curve, the dot, decided"),
        (WidthReason.LEVEL, "curves", "The FLOPs target decided"),
    ],
)
def test_captions_say_which_curve_decided(reason: WidthReason, plot: str, words: str) -> None:
    found = viewed()
    found = replace(found, selections={"conv": replace(found.selections["conv"], reason=reason)})
    text = Page(step_page(found, {plot: b"plot"})).text
    said = {
        "The knee of this curve decided",
        "The FLOPs target decided",
        "It has no knee, so every channel is kept",
        "The knee of its own curve, the dot, decided",
    }
    assert {sentence for sentence in said if sentence in text} == {words}


def test_the_layers_have_their_reasons() -> None:
    page = page_of(replace(viewed(), layers={"conv": (6, 3), "twin": (12, 6)}))
    assert "conv6350%knee of the network's damage against its FLOPs" in page.text
    assert "twin12650%goes with another layer" in page.text


def test_the_classes_that_lose_most() -> None:
    found = viewed()
    words = "Of 10 pairs of classes compared, bee and <eel> lose most: their distance falls from 1.50"
    assert words in page_of(found).text
    classes = found.maps["conv"].classes
    unnamed = replace(found.maps["conv"], classes=replace(classes, worst=()))
    words = "classes 0-1 and 2-4: their distance falls from 1.50 to 0.75"
    assert words in page_of(replace(found, maps={"conv": unnamed})).text
    whole = replace(found.maps["conv"], classes=replace(classes, after=classes.before, worst=()))
    page = page_of(replace(found, maps={"conv": whole}))
    assert "For every pair of classes the channel that separates it best stays." in page.text


def test_a_cut_that_was_undone_says_so() -> None:
    rolled_back = replace(viewed(), verdict=Verdict("val_acc", 0.75, 0.5, Outcome.LEFT))
    words = "The network is again what it was before"
    assert words in page_of(rolled_back).text
    assert words not in page_of(viewed()).text


def test_groups_that_stay_whole_share_a_line_and_have_no_place_in_the_contents() -> None:
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    whole = select_channels(torch.cdist(points, points), SelectionConfig(keep=1.0))
    found = viewed()
    page = page_of(replace(found, selections={**found.selections, "wide": whole, "twin": whole}))
    assert "All channels stay in 2 groups: wide, twin." in page.text
    places = {str(link["href"]) for link in page.of("a")}
    assert {"#layer.conv", "#layer.wide"} & places == {"#layer.conv"}
    assert len(page.of("details")) == 1


def test_without_plots_the_network_has_no_place_in_the_contents() -> None:
    page = Page(step_page(viewed(), {}))
    assert {"href": "#network"} not in page.of("a")
    assert {"href": "#network"} in page_of(viewed()).of("a")


def test_a_reason_that_all_layers_share_is_stated_once() -> None:
    found = viewed()
    chosen = found.selections["conv"]
    page = page_of(
        replace(found, layers={"a": (6, 3), "b": (6, 3)}, selections={"a": chosen, "b": chosen}, maps={})
    )
    (table,) = (table for table in page.tables if table[0][0] == "layer" and "kept" in table[0])
    assert table == [
        ["layer", "channels before", "after", "kept"],
        *([n, "6", "3", "50%"] for n in "ab"),
    ]
    assert page.text.count(str(chosen.reason)) == 3  # above the table, and with each group


def test_layers_left_whole_for_one_reason_share_a_row() -> None:
    page = page_of(replace(viewed(), left_whole={"a": "odd", "b": "even", "c": "odd"}))
    (table,) = (table for table in page.tables if table[0][0] == "layer" and len(table[0]) == 2)
    assert table[1:] == [["a, c", "odd"], ["b", "even"]]


def test_what_is_not_known_is_left_out() -> None:
    text = page_of(step(accuracy=None)).text
    assert "accuracy" not in text
    assert "latency" not in text
    assert "Guard" not in text


def test_a_preview_says_so() -> None:
    page = page_of(replace(viewed(), epoch=None))
    assert "This is a preview." in page.text
    assert "straight after the cut, before any training step" not in page.text


CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--virtual-time-budget=2000",
    "--enable-logging=stderr",
]
# Runs in a copy of the page, after all plots have been decoded.
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.images].filter(image => image.complete && image.naturalWidth > 300).length;
  const over = document.documentElement.scrollWidth > innerWidth;
  const lost = [...document.links].filter(link => {
    location.hash = link.hash;
    return !document.querySelector(":target");
  }).length;
  document.title = `${wide} of ${document.images.length} plots, overflow ${over}, lost links ${lost}`;
})</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Opens a file in a browser of its own; returns what this prints."""
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed; .ci/run installs it")
        pytest.skip("chromium is not installed: apt-get install chromium")
    browser: str = CHROMIUM

    def run(page: Path, *options: str) -> str:
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'user'}", *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page(browse: Callable[..., str], tmp_path: Path, width: int) -> None:
    source = write_report(renamed(), tmp_path).read_text()
    copy = tmp_path / "probe.html"
    copy.write_text(source.replace("</body>", f"{PROBE}</body>"))
    shown = browse(copy, f"--window-size={width},900", "--dump-dom")
    (title,) = re.findall(r"<title>(.*?)</title>", shown)
    assert title == "4 of 4 plots, overflow false, lost links 0"
    assert NAME.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in shown


def test_a_browser_paints_the_plots(browse: Callable[..., str], tmp_path: Path) -> None:
    page = write_report(viewed(), tmp_path)
    shot = tmp_path / "shot.png"
    browse(page, "--window-size=1200,3000", f"--screenshot={shot}")
    with Image.open(shot) as plot:
        colours = {colour for _, colour in plot.convert("RGB").getcolors(1 << 24)}
    assert {ImageColor.getrgb(colour) for colour in (BEFORE, AFTER, MARK)} <= colours
