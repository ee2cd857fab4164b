"""The manual: its Python runs, its YAML parses, its links lead somewhere, its messages are real."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import acsp_lightning
import acsp_lightning.functional
from acsp_lightning import ACSPPruningCallback, Distillation, LatencyAt, SelectionConfig
from acsp_lightning.cli.lightning_cli import ACSPCommandLine, command_line
from acsp_lightning.export.card import SNIPPET

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md"]
PACKAGE = ROOT / "acsp_lightning"
BUILD = "sphinx-build -W --keep-going -b html docs docs/_build"


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The blocks of one language on a page, each with the number of lines before it."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, but for the files that a page shows: blocks that begin with ``# NAME``.

    A command is started there, without arguments.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["acsp-lightning"])
    page = request.getfixturevalue("page")
    for language in ("python", "yaml"):
        for _, source in blocks(page, language):
            if named := re.match(r"# (\w+\.(?:py|yaml))\n", source):
                with (tmp_path / named[1]).open("a") as file:
                    file.write(source)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # what a reader's fit says of loaders, loggers and devices
@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    for line, source in blocks(page, "python"):
        exec(compile("\n" * line + source, str(page), "exec"), names)  # an error names page and line


BASE = """\
seed_everything: 0
model:
  class_path: acsp_lightning.zoo.ImageClassifier
  init_args: {network: {class_path: acsp_lightning.zoo.VGG, init_args: {stages: [[4]]}}}
data: acsp_lightning.zoo.DigitsDataModule
"""


def configured(folder: Path, source: str) -> ACSPCommandLine:
    """What the command line builds of a page's YAML; of what it leaves out, the base."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "page.yaml").write_text(source)
    given = yaml.safe_load(source)
    configs = ["page.yaml"] if "model" in given else ["base.yaml", "page.yaml"]
    return command_line([word for config in configs for word in ("--config", config)], run=False)


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=lambda page: page.stem)
def test_the_yaml_of_a_page_says_what_it_seems_to(page: Path, folder: Path) -> None:
    for _, source in blocks(page, "yaml"):
        (given,) = yaml.safe_load(source)["trainer"]["callbacks"]
        cli = configured(folder, source)
        callbacks = vars(cli.trainer)["callbacks"]
        (callback,) = (c for c in callbacks if isinstance(c, ACSPPruningCallback))
        for name, value in given["init_args"].items():
            found = getattr(callback, name)
            if name == "selection":
                assert found == SelectionConfig(**value)
            elif name == "distillation":
                assert found == Distillation(**value)
            elif name == "latency_at":
                assert found == LatencyAt(**value)
            elif name == "latency_table":
                assert str(found) == value
            elif name == "read_batch":
                assert f"{found.__module__}.{found.__name__}" == value
            else:
                assert found == (tuple(value) if isinstance(value, list) else value)


# -- links -------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Names that GitHub and MyST give to the headings of a page; of what it includes as well."""
    text = prose(page)
    for included in re.findall(r"^```\{include\} (\S+)$", page.read_text(), flags=re.MULTILINE):
        text += prose(page.parent / included)
    headings = re.findall(r"^#{1,3} (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def test_links_are_found() -> None:
    assert sum(len(links(page)) for page in LINKED) > 30


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"{page.name} links to {target}: there is no such file"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links to {target}: no such heading"


def test_every_page_is_in_the_contents() -> None:
    ((_, contents),) = blocks(DOCS / "index.md", "{toctree}")
    listed = [line for line in contents.splitlines() if re.fullmatch(r"\w+", line)]
    assert sorted(listed) == [page.stem for page in PAGES if page.stem != "index"]


# -- messages ----------------------------------------------------------------------------------------

ANYTHING = "..."


def as_quoted(node: ast.expr) -> str | None:
    """A string of the source as a page quotes it: whatever is filled in is ``...``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else ANYTHING for v in node.values)
        return "".join(map(str, parts))
    return None


def strings(tree: ast.AST) -> list[str]:
    """All strings of a source but its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.expr) and id(n) not in docstrings)
    return [text for node in nodes if (text := as_quoted(node)) is not None]


QUOTED = re.findall(r"^- `(.+)`$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
SOURCES = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]


def quotes(quoted: str, message: str) -> bool:
    """Whether a page's quotation is a part of a message."""
    return bool(re.search(".*".join(map(re.escape, quoted.split(ANYTHING))), message, flags=re.DOTALL))


def test_quoted_messages_are_those_of_the_source() -> None:
    assert len(QUOTED) > 60
    messages = [text for source in SOURCES for text in strings(source)]
    unknown = [quoted for quoted in QUOTED if not any(quotes(quoted, m) for m in messages)]
    assert not unknown, "troubleshooting.md quotes what nothing in the package says"


def test_every_warning_of_a_fit_is_explained() -> None:
    calls = [node for source in SOURCES for node in ast.walk(source) if isinstance(node, ast.Call)]
    warned = [c.args[0] for c in calls if ast.unparse(c.func) == "rank_zero_warn"]
    messages = [text for node in warned if (text := as_quoted(node)) is not None]
    assert len(messages) > 10
    missing = [message for message in messages if not any(quotes(q, message) for q in QUOTED)]
    assert not missing, "explain these warnings in troubleshooting.md"


def test_figures_are_those_of_the_recipes() -> None:
    known = (ROOT / "recipes" / "README.md").read_text()
    figures = re.compile(r"(?<!\d)\d\d\.\d\d(?: ± \d\.\d\d)?(?!\d)")
    quoted = [figure for page in PAGES for figure in figures.findall(prose(page))]
    assert len(quoted) > 10
    unknown = [figure for figure in quoted if figure not in known]
    assert not unknown, "the manual has other figures than recipes/README.md"


# -- the manual as a whole ---------------------------------------------------------------------------


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    public = {f"acsp_lightning.{name}" for name in acsp_lightning.__all__}
    shared = {name for name in acsp_lightning.functional.__all__ if name in acsp_lightning.__all__}
    inner = set(acsp_lightning.functional.__all__) - shared
    assert sorted(listed) == sorted(public | {f"acsp_lightning.functional.{name}" for name in inner})


def test_the_manual_builds_without_a_warning(tmp_path: Path) -> None:
    _, *options, target = BUILD.split()
    assert target == "docs/_build"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx.cmd.build", *options, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages >= {page.stem for page in PAGES}
    assert "Structured pruning" in (tmp_path / "index.html").read_text()
    assert "zero-based epochs" in (tmp_path / "api.html").read_text()


@pytest.mark.parametrize("path", [ROOT / "CONTRIBUTING.md", DOCS / "index.md", DOCS / "conf.py"])
def test_the_command_that_builds_it_is_the_one_tested(path: Path) -> None:
    assert BUILD in path.read_text()


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    authors = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert authors == ["Levin", "Singer"]
    assert "2505.13225" in citation["preferred-citation"]["url"]


PAGE_OF_EXPORT = [source for _, source in blocks(DOCS / "export.md", "python")]


def test_the_manual_has_the_loader_of_the_card() -> None:
    lines = [[line for line in text.splitlines() if line] for text in (SNIPPET, *PAGE_OF_EXPORT)]
    assert any(page[: len(lines[0])] == lines[0] for page in lines[1:])
