"""Checkpoints of a run as files for other programs, and a card."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import from_own_command_line, from_python
from helpers.exported import outputs, run_onnx
from helpers.fits import same_state
from helpers.letters import LetterClassifier, Letters, vgg
from torch import Tensor

from acsp_lightning import load_pruned, zoo
from acsp_lightning.cli.export import FORMATS


def digits() -> Tensor:
    batch: Tensor = next(iter(zoo.DigitsDataModule(batch_size=50).test_dataloader()))[0]
    return batch


def test_a_checkpoint_becomes_files_and_a_card(
    acsp_export: Any, checkpoint: Path, tmp_path: Path, capfd: Any
) -> None:
    before = sorted(checkpoint.parent.iterdir())
    out = tmp_path / "new" / "out"
    acsp_export(checkpoint, "--to", *FORMATS, "--out", out, "--accuracy")
    printed = capfd.readouterr()
    names = [f"{checkpoint.stem}{suffix}" for suffix in (".onnx", ".pt2", ".pt", ".md")]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [str(out / n) for n in names]
    assert "warning" not in printed.err.lower()
    assert sorted(checkpoint.parent.iterdir()) == before
    assert not list(Path.cwd().iterdir())

    network = load_pruned(LetterClassifier(vgg()), checkpoint)
    expected = outputs(network, digits())
    (found,) = run_onnx(out / names[0], digits())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert same_state(torch.load(out / names[2], weights_only=True), network.state_dict())

    card = (out / names[3]).read_text()
    assert "| `network.features.stage1.conv1` | 32 | 13 | 41% |" in card  # ceil(0.4 * 32)
    assert "validation samples: `helpers.letters.Letters`" in card
    assert f"From `{checkpoint.name}` (epoch 1, counted from 0), written by" in card
    assert "captured for the cut after epoch 0: 360 of 10 classes" in card
    assert "not the defaults: `epochs`: [0], `selection.keep`: 0.4\n" in card
    assert "- input: float32, (batch, 1, 8, 8)" in card
    assert "| cut after epoch 0 | 1 | cpu, " in card
    loader = zoo.DigitsDataModule().val_dataloader()
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in loader)
    (row,) = (line for line in card.splitlines() if line.startswith("| accuracy "))
    assert row.endswith(f"| {right / 360:.2%} |")
    assert "not measured" not in card

    # The code on the card, run where the files are, with the arguments of the class filled in.
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))
    code = code.replace("LetterClassifier(...)", "LetterClassifier(vgg())").replace("VGG(...)", "vgg()")
    zeros = 'np.zeros([1, 1, 8, 8], "float32")'
    assert zeros in code
    code = code.replace(zeros, "samples")
    for line in code.splitlines():
        if line.startswith("network = "):
            code = code.replace(line, f"{line}\nnetworks.append(network)")
    names_of_code: dict[str, Any] = {
        "LetterClassifier": LetterClassifier,
        "vgg": vgg,
        "networks": [],
        "samples": digits().numpy(),
    }
    os.chdir(out)
    exec(code, names_of_code)
    assert len(names_of_code["networks"]) == 3
    results = [found(digits()) for found in names_of_code["networks"]]
    for result in (*results, torch.from_numpy(names_of_code["outputs"][0])):
        torch.testing.assert_close(result.detach(), expected, rtol=1e-4, atol=1e-4)


def test_one_batch_is_enough_without_the_accuracy(
    acsp_export: Any, checkpoint: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    seen: list[int] = []
    step = LetterClassifier.validation_step
    monkeypatch.setattr(
        LetterClassifier, "validation_step", lambda *a: (seen.append(len(a[1]["letter"])), step(*a))[1]
    )
    acsp_export(checkpoint, "--to", "state_dict", "--out", tmp_path)
    assert seen == [32]
    (row,) = (
        line for line in (tmp_path / f"{checkpoint.stem}.md").read_text().splitlines() if "| acc" in line
    )
    assert row.endswith("| not measured |")


@pytest.mark.parametrize("kind", ["whole", "weights"])
def test_a_network_that_was_not_pruned_is_exported_with_a_warning(
    kind: str, acsp_export: Any, run: Path, tmp_path: Path, capfd: Any
) -> None:
    content: dict[str, Any] = {"state_dict": LetterClassifier(vgg()).state_dict()}
    if kind == "whole":
        content["callbacks"] = {}
    torch.save(content, tmp_path / "net.ckpt")
    acsp_export(tmp_path / "net.ckpt", "--to", "state_dict", "--config", run / "config.yaml")
    warning, said = {
        "whole": ("tells of no cut; what was exported is the whole network", "Not pruned."),
        "weights": ("holds weights alone; whether they were pruned", "Not known: the file holds"),
    }[kind]
    assert warning in capfd.readouterr().err
    assert said in (tmp_path / "net.md").read_text()


def test_a_record_of_another_version_does_not_stop_the_export(
    acsp_export: Any, run: Path, checkpoint: Path, tmp_path: Path, capfd: Any
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    (key,) = (key for key in content["callbacks"] if "ACSP" in key)
    content["callbacks"][key]["steps"][0]["colour"] = "red"
    torch.save(content, tmp_path / "net.ckpt")
    acsp_export(tmp_path / "net.ckpt", "--to", "state_dict", "--config", run / "config.yaml")
    assert "another version of acsp_lightning wrote it" in capfd.readouterr().err
    assert "Not known" in (tmp_path / "net.md").read_text()


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_an_empty_validation_loader(
    acsp_export: Any, checkpoint: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.setattr(Letters, "val_dataloader", lambda self: [])
    with pytest.raises(SystemExit):
        acsp_export(checkpoint, "--to", "onnx")
    assert "validation loader is empty" in capfd.readouterr().err


def test_a_checkpoint_from_python(acsp_export: Any, own: str, tmp_path: Path, capfd: Any) -> None:
    checkpoint = from_python(own, tmp_path / "run")
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        acsp_export(checkpoint, "--to", "state_dict")
    assert end.value.code == 2
    error = capfd.readouterr().err
    command = error.rpartition("Name the class: acsp-lightning export ")[2].partition(", or give")[0]
    names = {"my_module.MyModel": f"{own}.Small", "my_module.MyData": f"{own}.Data"}
    acsp_export(*(re.sub(r"my_module\.\w+", lambda m: names[m[0]], word) for word in command.split()))
    state = torch.load(checkpoint.with_suffix(".pt"), weights_only=True)
    assert same_state(state, torch.load(checkpoint, weights_only=True)["state_dict"])
    assert f"validation samples: `{own}.Data`" in checkpoint.with_suffix(".md").read_text()


def test_a_checkpoint_of_a_command_line_with_fixed_classes(
    acsp_export: Any, own: str, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = from_own_command_line(own, tmp_path / "run", monkeypatch)
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        acsp_export(checkpoint, "--to", "state_dict", f"--model={own}.Small")
    assert end.value.code == 2
    assert f"--model={own}.Small --data=my_module.MyData" in capfd.readouterr().err
    acsp_export(checkpoint, "--to", "onnx", "--model", f"{own}.Small", "--data", f"{own}.Data")
    assert checkpoint.with_suffix(".onnx").is_file()


def test_without_data_an_example_of_the_module_will_do(
    acsp_export: Any, own: str, tmp_path: Path, capfd: Any
) -> None:
    checkpoint = from_python(own, tmp_path / "run")
    words = [checkpoint, "--to", "onnx", f"--model={own}.SmallWithExample"]
    acsp_export(*words)
    assert checkpoint.with_suffix(".onnx").is_file()
    capfd.readouterr()
    with pytest.raises(SystemExit):
        acsp_export(*words, "--accuracy")
    assert "does not say what its data are built from" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["SmallInSetup", "SmallInSetupWithExample"])
def test_a_network_that_setup_builds(acsp_export: Any, own: str, tmp_path: Path, kind: str) -> None:
    checkpoint = from_python(own, tmp_path / "run")
    data = [] if "Example" in kind else [f"--data={own}.Data"]
    acsp_export(checkpoint, "--to", "state_dict", "onnx", f"--model={own}.{kind}", *data)
    state = torch.load(checkpoint.with_suffix(".pt"), weights_only=True)
    assert same_state(state, torch.load(checkpoint, weights_only=True)["state_dict"])


def test_a_network_that_setup_builds_for_a_fit_alone(
    acsp_export: Any, own: str, tmp_path: Path, capfd: Any
) -> None:
    checkpoint = from_python(own, tmp_path / "run")
    capfd.readouterr()
    with pytest.raises(SystemExit):
        acsp_export(checkpoint, "--to", "state_dict", f"--model={own}.SmallInFit", f"--data={own}.Data")
    said = "error: SmallInFit has no parameters after setup('validate') and configure_model(). Build"
    assert said in capfd.readouterr().err
