"""Networks that people use are cut right, and not less than they were.

Fifteen stand for the list of ``tests/benchmarks/coverage.py``. All of it, beside Torch-Pruning, runs
with ``pytest -m coverage``.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "coverage.py"

# Share of the FLOPs that is saved at least, by default and with residual=True. Zero: it may be refused.
SHARES = {
    "torchvision/mobilenet_v3_small": (0.55, 0.69),
    "torchvision/resnet18": (0.73, 0.73),
    "torchvision/shufflenet_v2_x0_5": (0.60, 0.60),
    "torchvision/squeezenet1_1": (0.72, 0.72),
    "timm/convnext_atto": (0.43, 0.43),
    "timm/cs3darknet_s": (0.57, 0.74),
    "timm/dla34": (0.52, 0.73),
    "timm/edgenext_xx_small": (0.38, 0.38),
    "timm/efficientnet_lite0": (0.53, 0.71),
    "timm/ese_vovnet19b_dw": (0.73, 0.73),
    "timm/ghostnet_050": (0.49, 0.68),
    "timm/lcnet_050": (0.69, 0.69),
    "timm/regnetx_002": (0.50, 0.70),
    "timm/repvgg_a0": (0.74, 0.74),
    "timm/resnest14d": (0.61, 0.74),
}

# Of timm and of what it does to torch, which is none of our business.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    specification = importlib.util.spec_from_file_location("coverage_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SHARES)
def test_fifteen_networks(coverage: ModuleType, name: str) -> None:
    assert name in coverage.NETWORKS
    for tool, share in zip(("default", "residual"), SHARES[name], strict=True):
        row = coverage.row_of(name, tool)
        assert row["status"] == "right", row
        assert coverage.saved(row) >= share, tool


def test_norms_over_fewer_channels(coverage: ModuleType) -> None:
    """ConvNeXt loses what Torch-Pruning cuts; nothing is off from its reference."""
    row = coverage.row_of("timm/convnext_atto", "refit")
    assert (row["status"], row["left"], row["norms"]) == ("right", 0, 17), row
    assert coverage.saved(row) >= 0.73


@pytest.mark.coverage
def test_all_networks(coverage: ModuleType, tmp_path: Path) -> None:
    """Ours breaks nothing, and saves what it saved on those where Torch-Pruning is right."""
    rows = coverage.gather(coverage.NETWORKS, list(coverage.TOOLS), tmp_path / "coverage.json")
    print(coverage.table(rows), coverage.totals(rows), sep="\n\n")
    ours = [row for row in rows if row["tool"] != "torch-pruning"]
    assert not [row for row in ours if row["status"] not in ("right", "refused")]
    judged = {r["network"] for r in rows if r["tool"] == "torch-pruning" and r["status"] == "right"}
    for tool, share in (("default", 0.60), ("residual", 0.72)):
        saved = [coverage.saved(r) for r in ours if r["tool"] == tool and r["network"] in judged]
        assert sum(saved) / len(saved) >= share


# -- the benchmark itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "spoilt"), [("default", False), ("default", True), ("torch-pruning", False)]
)
def test_a_cut_that_is_not_the_masked_network_is_found(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, tool: str, spoilt: bool
) -> None:
    cut = coverage.TOOLS[tool]

    def one_channel_beside(*arguments: Any) -> Any:
        dropped, found = cut(*arguments)
        name = next(iter(dropped))
        wrong = {position + 1 for position in dropped[name]} - {64}
        return {**dropped, name: wrong}, found

    monkeypatch.setitem(coverage.TOOLS, tool, one_channel_beside if spoilt else cut)
    row = coverage.row_of("torchvision/resnet18", tool)
    assert row["status"] == ("wrong" if spoilt else "right")


def test_rows_are_written_at_once_and_not_measured_twice(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """A process that dies or has no time is a row."""
    name, unknown = "torchvision/squeezenet1_1", "torchvision/none"
    command = [name, unknown, "--out", str(tmp_path), "--tools", "default"]
    coverage.main(command)
    printed = capsys.readouterr().out
    first, second = json.loads((tmp_path / "coverage.json").read_text())
    assert first["status"] == "right"
    assert second["status"] == "broken"
    assert f"| {name} | 25/0, 3.64x |" in printed
    assert "default: 1 right, 0 refused, 0 wrong, 1 broken" in printed
    monkeypatch.setattr(coverage, "row_of_process", None)
    coverage.main(command)
    assert capsys.readouterr().out == printed


def test_a_search_without_end_is_a_row(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "SECONDS", 1)
    row = coverage.row_of_process("torchvision/resnet18", "default")
    assert row["status"] == "broken"
    assert "no answer in 1 s" in row["why"]
