"""Every command and every piece of Python in the README, run as a newcomer would."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]
COMMANDS += re.findall(r"`(python -m pip [^`]*|bash [^`]*)`", README)


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_readme_has_what_is_tested_here() -> None:
    assert len(PYTHON) == 1
    assert [" ".join(command.split()[:2]) for command in COMMANDS] == [
        "python -m",
        "acsp-lightning fit",
        "acsp-lightning preview",
        "acsp-lightning export",
        "python -m",
        "bash .ci/run",
    ]


def test_the_installations_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in COMMANDS:
        if command.startswith("python -m pip"):
            install, *tests = command.split(" && ")
            assert install in ci
            assert all(any(test in line.split() for line in ci) for test in tests)


def test_the_recipe_is_trained_cut_tested_previewed_and_exported(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    program = str(Path(sys.executable).parent / "acsp-lightning")
    commands = [shlex.split(command) for command in COMMANDS]
    fit, preview, export = (
        run([program, *words], tmp_path) for name, *words in commands if name == "acsp-lightning"
    )
    assert "Cut after epoch 6: 5 of 5 layers are narrower" in fit
    table = fit[fit.index("Pruned in one cut") :].split("not in the FLOPs")[0]
    widths = re.findall(r"conv\d +(\d+) +(\d+)", table)
    assert len(widths) == 5
    assert all(0 < int(after) < int(before) for before, after in widths)
    before, straight_after, end = map(float, re.findall(r"(\d+\.\d+)%", table))
    assert before > 95
    assert straight_after > 90
    assert end > 95
    assert "aten::max_pool2d" in fit
    assert float(re.search(r"test_acc\s+│\s+([\d.]+)", fit).group(1)) > 0.95
    folder = tmp_path / "lightning_logs" / "digits_vgg" / "version_0"
    assert (folder / "acsp" / "cut_after_epoch_6" / "report.html").stat().st_size > 100_000

    assert "Preview: what a cut would do" in preview
    assert f"{before:.2f}%" in preview  # the same network on the same images
    assert float(re.search(r"\((\d\.\d+)x less\)\naccuracy", preview).group(1)) >= 2
    assert (tmp_path / "preview" / "report.html").stat().st_size > 100_000

    written = {path.suffix for path in (tmp_path / "exported").iterdir()}
    assert written == {".md", ".onnx", ".pt", ".pt2"}
    assert len(export.splitlines()) >= 4


@pytest.mark.parametrize("source", PYTHON)
def test_the_python(source: str, tmp_path: Path) -> None:
    printed = run([sys.executable, "-W", "ignore", "-c", source], tmp_path)
    assert printed.strip()
