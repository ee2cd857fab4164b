"""What a model card says, and whether the code on it works."""

import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import Classifier, Fit, callback, conv_net
from helpers.records import complexity, network_times, step, viewed
from torch import nn

from acsp_lightning import ACSPPruningCallback, PruningStep, SelectionConfig
from acsp_lightning.export.card import SNIPPET, callback_settings, model_card, pruning_steps
from acsp_lightning.export.formats import Exported, export_state_dict
from acsp_lightning.report.step import Outcome, Verdict
from acsp_lightning.structure.batchnorm import recalibrate_batchnorm
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.verification import prunable_groups

CLASSES = '''
import torch
from torch import nn


class Everything(nn.Module):
    """All kinds of layers that can be cut; where two sizes are equal, they may be mixed up."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 1, groups=3)
        self.stem = nn.Conv2d(6, 8, 3, padding=1)
        self.square = nn.Conv2d(8, 8, 1)
        self.expand = nn.Conv2d(8, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 8, 1)
        self.branch = nn.Conv2d(8, 6, 1)
        self.groups = nn.GroupNorm(6, 6)
        self.act = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(14, 4, 2, stride=2)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.last = nn.ConvTranspose2d(4, 1, 1)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.square(self.stem(self.grouped(x)).relu())
        x = x + self.project(self.depthwise(self.norm(self.expand(x)).relu()).relu())
        x = torch.cat([x, self.act(self.groups(self.branch(x)))], 1)
        x = self.last(self.instance(self.up(x)))
        return self.head(self.hidden(x.flatten(1)).relu())


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Everything()

    def forward(self, x):
        return self.network(x)
'''
namespace: dict[str, Any] = {}
exec(CLASSES, namespace)

# What Python runs where nothing of this package, nor Lightning, can be imported.
ALONE = """
import sys


class Refusal:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("acsp_lightning", "lightning", "pytorch_lightning"):
            raise ImportError(name)


sys.meta_path.insert(0, Refusal())
"""


def cut(network: nn.Module, images: torch.Tensor) -> nn.Module:
    groups = prunable_groups(network, (images,), residual=True).groups
    kept = {group.name: range(1, group.width, 2) for group in groups}
    prune(network, build_plan(groups, kept), (images,))
    return network


def test_the_snippet_loads_with_torch_alone(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = namespace["Whole"]().eval()
    whole = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    cut(model, images)
    recalibrate_batchnorm(model.train(), [images], 1)
    changed = [n for n, tensor in model.state_dict().items() if whole.get(n) != tuple(tensor.shape)]
    layers = {name.split(".")[1] for name in changed}
    assert {"square", "depthwise", "norm", "groups", "act", "up", "hidden", "head"} <= layers
    with torch.no_grad():
        expected = model.eval()(images)
    export_state_dict(model, tmp_path / "weights.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, tmp_path / "last.ckpt")
    torch.save((images, expected), tmp_path / "known.pt")

    script = f"{ALONE}\n{CLASSES}\n{SNIPPET}\n" + textwrap.dedent("""
        images, expected = torch.load("known.pt")
        for network in (
            load(Whole(), "weights.pt"),
            load(Whole(), "last.ckpt"),
            load(Everything(), "weights.pt", prefix="network."),
            load(Everything(), "last.ckpt", prefix="network."),
        ):
            assert not network.training
            assert torch.equal(network(images), expected)
            assert all(p.requires_grad for p in network.parameters())
        print([m for m in sys.modules if m.split(".")[0] in ("acsp_lightning", "lightning")])
        try:
            load(Everything(), "weights.pt")
        except KeyError as error:
            print("missing", error)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\nmissing 'grouped.weight'\n"


def test_the_snippet_is_a_few_lines_of_torch() -> None:
    assert len([line for line in SNIPPET.splitlines() if line]) <= 17
    assert re.findall(r"^\s*(?:import|from) .*", SNIPPET, flags=re.MULTILINE) == ["import torch"]


def sections(card: str) -> dict[str, str]:
    """Text under every heading of the second level, by heading."""
    head, *parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return {"": head, **dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))}


def table(text: str) -> list[list[str]]:
    """Cells of the first table in ``text``, without the rule under its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert set("".join(cells[1])) <= set("-:")
    return [cells[0], *cells[2:]]


def test_a_card_says_what_was_cut_and_measured() -> None:
    found = sections(
        model_card(
            Classifier(),
            [viewed()],
            source="last.ckpt",
            epoch=5,
            inputs=(
                {"x": torch.ones(2, 1, 6, 6), "ids": torch.ones(2, dtype=torch.int64)},
                torch.ones(3, 2),
                7,
            ),
            data="my.Data",
            settings={"epochs": [4], "selection.keep": 0.5},
            complexity=complexity(3000, 30_000),
            accuracy=0.9,
            exported=[Exported(Path("/a/b/last.onnx"), "onnx", 12345, (32, 1), 1.5e-7, 3e-4)],
        )
    )
    assert found[""].startswith(
        "# Model card: Classifier\n\nFrom `last.ckpt` (epoch 5, counted from 0), written by acsp_"
    )
    assert found["Network"] == (
        "- class: `helpers.fits.Classifier`\n- `net`: `torch.nn.modules.container.Sequential`\n"
        "- input: float32, (batch, 1, 6, 6)\n- input: int64, (batch)\n- input: float32, (3, 2)"
    )
    assert "validation samples: `my.Data`" in found["Data"]
    assert (
        "captured for the cut after epoch 4: 18 of 3 classes; 2 more had fewer than two" in found["Data"]
    )
    assert "arXiv 2505.13225" in found["Method"]
    assert "widths: knee of the network's damage against its FLOPs (1 groups" in found["Method"]
    assert "settings that are not the defaults: `epochs`: [4], `selection.keep`: 0.5" in found["Method"]
    assert "(val_acc 0.7500 -> 0.7000)" in found["Method"]
    assert "2 pairs of classes drawn at random" in found["Method"]
    assert table(found["Kept channels"]) == [
        ["layer", "before", "after", "kept"],
        ["`conv`", "6", "3", "50%"],
    ]
    figures, latencies = found["Measured figures"].split("Latency", 1)
    assert table(figures) == [
        ["", "before", "straight after the cut", "now"],
        ["parameters", "6,000", "3,000 (2.00x fewer)", "3,000 (2.00x fewer)"],
        ["FLOPs", "60,000", "30,000 (2.00x fewer)", "30,000 (2.00x fewer)"],
        ["accuracy", "75.00%", "50.00%", "90.00%"],
    ]
    assert table(latencies)[1:] == [
        ["cut after epoch 4", "1", "cpu, 2 threads", "2.000", "1.000 (2.00x faster)"],
        ["cut after epoch 4", "32", "cpu, 2 threads", "64.000", "32.000 (2.00x faster)"],
    ]
    assert table(found["Files"])[1] == ["`last.onnx`", "onnx", "12,345", "32 and 1", "1.5e-07", "0.0003"]
    assert SNIPPET in found["Loading"]
    assert 'onnxruntime.InferenceSession("last.onnx")' in found["Loading"]
    zeros = 'np.zeros([1, 1, 6, 6], "float32"), np.zeros([1], "int64"), np.zeros([3, 2], "float32")'
    assert f"inputs = [{zeros}]" in found["Loading"]
    assert "torch.export" not in found["Loading"]
    assert 'load(Classifier(...), "last.ckpt")' in found["Loading"]
    safe = model_card(Classifier(), [], source="last.safetensors")  # which torch cannot read
    assert 'load(Classifier(...), "weights.pt")' in safe


def test_several_cuts_are_summed_up_and_those_undone_left_out() -> None:
    rolled_back = replace(step(2, 6, 2), verdict=Verdict("val_acc", 0.75, 0.2, Outcome.HALVED))
    card = model_card(conv_net(), [step(1, 6, 5), rolled_back, step(3, 5, 4)])
    found = sections(card)
    assert table(found["Kept channels"])[1:] == [["`conv`", "6", "4", "67%"]]
    assert table(found["Measured figures"])[:2] == [
        ["", "before", "straight after the last cut", "now"],
        ["parameters", "6,000", "4,000 (1.50x fewer)", "not measured"],
    ]
    assert table(found["Measured figures"])[3] == ["accuracy", "75.00%", "not measured", "not measured"]
    assert "cuts: cut after epoch 1, cut after epoch 3" in found["Method"]
    assert "cut after epoch 2 rolled back, to be cut again at half the depth" in found["Method"]
    assert "Latency: not measured." in card
    timed = model_card(conv_net(), [replace(step(1, 6, 4), times=network_times())])
    assert "Latency: not measured." not in timed
    assert "cut after epoch 1: latency=0.5 asks for 20.00 ms" in timed


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (None, "Not known: the file holds weights without"),
        ([], "Not pruned."),
        ("rolled_back", "Not pruned."),
    ],
)
def test_a_network_of_which_less_is_known(steps: Any, said: str) -> None:
    rolled_back = replace(step(), verdict=Verdict("val_acc", 0.75, 0.2, Outcome.LEFT))
    given = [rolled_back] if steps == "rolled_back" else steps
    card = model_card(nn.Linear(3, 2), given, complexity=complexity(8, 6))
    found = sections(card)
    assert found["Method"].startswith(said)
    assert ("rolled back, left as it was (val_acc 0.7500 -> 0.2000)" in card) == (steps == "rolled_back")
    assert "Kept channels" not in found
    assert "Files" not in found
    assert "None" not in card
    assert table(found["Measured figures"])[:2] == [["", "now"], ["parameters", "8"]]
    assert "prefix=" not in found["Loading"].split("return")[1]


def test_the_cuts_of_a_checkpoint(fit: Fit, tmp_path: Path) -> None:
    pruning = [callback(0, include=["net.conv1"]), callback(1, include=["net.fc1"])]
    trainer = fit(Classifier(), list(reversed(pruning)), max_epochs=3)
    for name, weights_only in (("all.ckpt", False), ("weights.ckpt", True)):
        trainer.save_checkpoint(tmp_path / name, weights_only)
    trainer = fit(Classifier(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")

    def read(name: str) -> list[PruningStep] | None:
        return pruning_steps(torch.load(tmp_path / name, weights_only=True))

    steps = read("all.ckpt")
    assert steps is not None
    assert [list(found.layers) for found in steps] == [["net.conv1"], ["net.fc1"]]
    assert [found.to_dict() for found in steps] == [c.steps[0].to_dict() for c in pruning]
    assert read("weights.ckpt") is None
    assert read("whole.ckpt") == []
    assert pruning_steps(Classifier().state_dict()) is None


def test_cuts_that_others_have_written() -> None:
    record = {"__kind__": "PruningStep", "epoch": 3, "colour": "red"}
    state = {"steps": [record], "visited": [], "trial": None}
    with pytest.raises(ValueError, match=r"written by another version .*no format mark"):
        pruning_steps({"callbacks": {"ACSPPruningCallback": state}})
    with pytest.raises(ValueError, match="another version of acsp_lightning wrote it"):
        pruning_steps({"callbacks": {"ACSPPruningCallback": {**state, "format": 2}}})
    assert (
        pruning_steps({"callbacks": {"Other": {"steps": [1, 2]}, "Odd": 3, "More": {"steps": 7}}}) == []
    )


def test_settings_are_those_that_differ_from_the_defaults(tmp_path: Path) -> None:
    assert callback_settings(ACSPPruningCallback(epochs=[4])) == {"epochs": [4]}
    changed = ACSPPruningCallback(
        epochs=(1, 3),
        exclude=["head"],
        include=["*"],
        selection=SelectionConfig(flops=0.5, seed=3),
        residual=True,
        report_dir=tmp_path,
        latency_batch_sizes=[1],
    )
    assert callback_settings(changed) == {
        "epochs": [1, 3],
        "exclude": ["head"],
        "selection.flops": 0.5,
        "selection.seed": 3,
        "residual": True,
    }
