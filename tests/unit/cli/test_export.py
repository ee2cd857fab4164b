"""What is refused before anything is exported."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fits import same_state
from helpers.letters import LetterClassifier, vgg
from torch import nn


def edited(run: Path, path: Path, **changes: Any) -> Path:
    """The configuration of the run with another network."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["model"]["init_args"]["network"]["init_args"] |= changes
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/no.ckpt", "--to", "onnx"], r"no\.ckpt does not exist"),
        (["{tmp}/no.ckpt", "--to", "onnx", "--config", "{config}"], r"no\.ckpt does not exist"),
        (["{tmp}", "--to", "onnx"], "is a folder; give a file in it"),
        (["{ckpt}", "--to", "tflite"], "invalid choice: 'tflite'"),
        (["{ckpt}"], "required: --to"),
        (["{tmp}/lone.ckpt", "--to", "onnx"], r"lone\.ckpt does not say.*--model=.*--config=FILE"),
        (["{ckpt}", "--to", "onnx", "--config", "{tmp}/no.yaml"], r"no\.yaml does not exist"),
        (["{ckpt}", "--to", "onnx", "--config", "{tmp}/list.yaml"], "holds a list"),
        (["{ckpt}", "--to", "onnx", "--config", "{tmp}/torn.yaml"], "cannot be read as YAML"),
        (
            ["{ckpt}", "--to", "onnx", "--config", "{tmp}/other.yaml"],
            r"does not fit.*built from .*other",
        ),
        (
            ["{ckpt}", "--to", "onnx", "--config", "{tmp}/wrong.yaml"],
            r"stagess.*built from .*wrong\.yaml",
        ),
        (["{ckpt}", "--to", "onnx", "--config", "{tmp}/bare.yaml"], "has a data without class_path"),
        (["{ckpt}", "--to", "onnx", "--config", "{tmp}/bad.yaml"], "at least one"),
        (["{tmp}/torn.ckpt", "--to", "onnx", "--config", "{config}"], r"torn\.ckpt is damaged"),
        (["{tmp}/weights.pt", "--to", "state_dict", "--config", "{config}"], "the checkpoint itself"),
        (["{ckpt}", "--to", "onnx", "--out", "{tmp}/list.yaml"], r"list\.yaml is no folder"),
        (["{ckpt}", "--to", "onnx", "--out", "{tmp}/list.yaml/out"], "Not a directory"),
    ],
)
def test_bad_input_ends_in_one_message(
    words: list[str],
    message: str,
    acsp_export: Any,
    run: Path,
    checkpoint: Path,
    tmp_path: Path,
    capfd: Any,
) -> None:
    content = checkpoint.read_bytes()
    (tmp_path / "lone.ckpt").write_bytes(content)
    (tmp_path / "torn.ckpt").write_bytes(content[: len(content) // 2])
    torch.save(LetterClassifier(vgg()).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "torn.yaml").write_text("model: [1, 2")
    (tmp_path / "bare.yaml").write_text("{model: {class_path: a.B}, data: {root: here}}")
    edited(run, tmp_path / "other.yaml", num_classes=7)
    edited(run, tmp_path / "wrong.yaml", stagess=[[3]])
    edited(run, tmp_path / "bad.yaml", stages=[])
    before = sorted(tmp_path.rglob("*"))
    names = {"tmp": tmp_path, "ckpt": checkpoint, "config": run / "config.yaml"}
    with pytest.raises(SystemExit) as end:
        acsp_export(*(word.format(**names) for word in words))
    assert end.value.code == 2
    said = capfd.readouterr()
    assert said.out == ""
    before_error, error = said.err.split("acsp-lightning export: error: ")
    assert not before_error
    assert re.search(message, error, flags=re.DOTALL)
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_of_the_classes_and_of_nobody(
    acsp_export: Any, own: str, tmp_path: Path, capfd: Any
) -> None:
    torch.save(from_weights := {"state_dict": small(own, 9).state_dict()}, tmp_path / "net.ckpt")
    words = [tmp_path / "net.ckpt", "--to", "state_dict", f"--model={own}.SmallWithData"]
    acsp_export(*words, "--model.hidden=9")
    assert same_state(torch.load(tmp_path / "net.pt", weights_only=True), from_weights["state_dict"])
    capfd.readouterr()
    for word, wanted in (
        ("--modul.hidden=9", "unknown: --modul.hidden=9"),
        ("--model.hiden=9", "hiden"),
    ):
        with pytest.raises(SystemExit) as end:
            acsp_export(*words, word)
        assert end.value.code == 2
        assert wanted in capfd.readouterr().err


def small(own: str, hidden: int) -> nn.Module:
    network: nn.Module = importlib.import_module(own).Small(hidden)
    return network
