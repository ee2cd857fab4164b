"""Checkpoints of a run as files for other programs, and a card."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import RECIPE, from_own_command_line, from_python
from helpers.exported import outputs, run_onnx
from helpers.fits import same_state
from torch import Tensor, nn

from acsp_lightning import load_pruned, zoo
from acsp_lightning.cli import main
from acsp_lightning.cli.export import FORMATS

# -- acsp-lightning export ---------------------------------------------------------------------------


class Letters(zoo.DigitsDataModule):
    """Digits in batches that only :func:`split` understands."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"pixels": batch[0], "letter": batch[1]}


class LetterClassifier(zoo.ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(split(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(split(batch), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(split(batch), batch_idx)


def split(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["pixels"], batch["letter"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short fit of the digits, cut to the half after its first epoch."""
    folder = tmp_path_factory.mktemp("run")
    content = yaml.safe_load(RECIPE.read_text())
    content["trainer"] |= {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_train_batches": 8,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    content["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
        {
            "class_path": "acsp_lightning.ACSPPruningCallback",
            "init_args": {
                "epochs": [0],
                "selection": {"keep": 0.4},
                "read_batch": f"{__name__}.split",
                "report_plots": False,
                "latency_batch_sizes": [1],
            },
        },
    ]
    content["model"]["class_path"] = f"{__name__}.LetterClassifier"
    content["data"]["class_path"] = f"{__name__}.Letters"
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["acsp-lightning"])
        main(["fit", "--config", str(recipe)])
    (found,) = (folder / "digits_vgg").iterdir()
    return found


@pytest.fixture
def checkpoint(run: Path) -> Path:
    (found,) = run.glob("checkpoints/epoch=1-*.ckpt")
    return found


@pytest.fixture
def acsp_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs the command in an empty folder, as the shell would."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["acsp-lightning", "export", *map(str, words)])
        main()

    return run


def digits() -> Tensor:
    batch: Tensor = next(iter(zoo.DigitsDataModule(batch_size=50).test_dataloader()))[0]
    return batch


def vgg() -> zoo.VGG:
    return zoo.VGG([[32, 32], [64, 64], [128]], in_channels=1)


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
    assert f"validation samples: `{__name__}.Letters`" in card
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
    for line in code.splitlines():
        if line.startswith("network = "):
            code = code.replace(line, f"{line}\nnetworks.append(network)")
    names_of_code: dict[str, Any] = {
        "LetterClassifier": LetterClassifier,
        "vgg": vgg,
        "networks": [],
        "inputs": digits().numpy(),
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
