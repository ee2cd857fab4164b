"""The page of a cut, parsed, and opened in a real browser."""

import io
import os
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from steps import step, viewed

from acsp_lightning import PruningStep
from acsp_lightning.report import write_report
from acsp_lightning.report.figures import png, step_figures
from acsp_lightning.report.page import step_page

NAME = "net.<b>&\"'conv"


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, kind: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == kind]


def page_of(found: PruningStep) -> Page:
    return Page(step_page(found, {name: png(figure) for name, figure in step_figures(found)}))


def renamed() -> PruningStep:
    found = viewed()
    return replace(
        found,
        layers={NAME: (6, 3)},
        selections={NAME: found.selections["conv"]},
        views={NAME: found.views["conv"]},
    )


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    page = page_of(viewed())
    assert not page.open
    assert not page.of("script")
    assert not page.of("link")
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.of("img"))
    assert all(str(link["href"]).startswith("#") for link in page.of("a"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {str(link["href"])[1:] for link in page.of("a")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_every_picture_is_there_with_words() -> None:
    page = page_of(viewed())
    assert [image["alt"] for image in page.of("img")] == [name for name, _ in step_figures(viewed())]
    # The pictures of the groups have one explanation in common.
    assert len(page.of("figcaption")) == len(page.of("img")) - 1
    assert "every dot is a channel" in page.text
    for image in page.of("img"):
        with Image.open(io.BytesIO(b64decode(str(image["src"]).partition(",")[2]))) as picture:
            assert picture.format == "PNG"


def test_names_are_text_whatever_is_in_them() -> None:
    page = page_of(renamed())
    assert not page.of("b")
    assert page.text.count(NAME) == 3  # contents, table and heading


def test_the_figures_are_those_of_the_record() -> None:
    text = page_of(viewed()).text
    for figure in ("6,000", "3,000", "2.00x less", "75.00%", "50.00%", "-25.00 points", "2.00x as fast"):
        assert figure in text
    assert "18 validation samples of 3 classes were captured" in text
    assert "2 classes never appeared and were left out" in text
    assert "distances are right to 25.0% of their median" in text
    assert "Guard: cut after epoch 4 recovered (val_acc 0.75 -> 0.7)" in text
    kept = viewed().selections["conv"].kept.tolist()
    assert ", ".join(map(str, kept)) in text
    assert "3 of 6 channels stay: fixed share of the channels." in text


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
    "--dump-dom",
]
# Runs in a copy of the page, after all pictures have been decoded.
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.images].filter(image => image.complete && image.naturalWidth > 300).length;
  const over = document.documentElement.scrollWidth > innerWidth;
  document.title = `${wide} of ${document.images.length} pictures, overflow ${over}`;
})</script>"""


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed; .ci/run installs it")
        pytest.skip("chromium is not installed: apt-get install chromium")
    source = write_report(renamed(), tmp_path).read_text()
    copy = tmp_path / "probe.html"
    copy.write_text(source.replace("</body>", f"{PROBE}</body>"))
    for width in (1200, 420):
        command = [
            CHROMIUM,
            *FLAGS,
            f"--window-size={width},900",
            f"--user-data-dir={tmp_path / 'user'}",
        ]
        done = subprocess.run(
            [*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
        assert title == "5 of 5 pictures, overflow false"
        assert NAME.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in done.stdout
