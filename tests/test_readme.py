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
    for line in block.splitlines()
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
    assert len(PYTHON) == 3
    assert COMMANDS == [
        "python -m pip install .",
        "acsp-lightning fit --config recipes/digits_vgg.yaml",
        "python -m pip install '.[test]' && pytest",
        "bash .ci/run",
    ]


def test_the_installations_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in COMMANDS:
        if command.startswith("python -m pip"):
            assert command in ci


def test_the_recipe_trains_cuts_goes_on_and_tests(tmp_path: Path) -> None:
    (fit,) = [command for command in COMMANDS if command.startswith("acsp-lightning")]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    command = Path(sys.executable).parent / "acsp-lightning"
    printed = run([str(command), *shlex.split(fit)[1:]], tmp_path)
    for title in ("Cut after epoch 6", "Pruned in one cut"):
        table = printed[printed.index(title) :].split("not in the FLOPs")[0]
        widths = re.findall(r"conv\d +(\d+) +(\d+)", table)
        assert len(widths) == 5
        assert all(0 < int(after) < int(before) for before, after in widths)
    before, straight_after, end = map(float, re.findall(r"(\d+\.\d+)%", table))
    assert before > 95
    assert straight_after > 90
    assert end > 95
    assert "aten::max_pool2d" in printed
    assert float(re.search(r"test_acc\s+│\s+([\d.]+)", printed).group(1)) > 0.95


@pytest.mark.parametrize("source", PYTHON)
def test_the_python(source: str, tmp_path: Path) -> None:
    printed = run([sys.executable, "-W", "ignore", "-c", source], tmp_path)
    assert printed.strip()
