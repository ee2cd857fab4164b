import csv
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from helpers.commands import RECIPE, SHORT, from_own_command_line

from acsp_lightning.zoo import DigitsDataModule, ImageClassifier

# LightningCLI 2.6 calls methods of jsonargparse that 4.49 deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|[\s\S]*was\s+deprecated\s+in\s+v4\.49)"
)


class NoTestData(DigitsDataModule):
    test_dataloader = pl.LightningDataModule.test_dataloader


def test_fit_ends_with_a_test_and_leaves_its_configuration(acsp, tmp_path: Path, capfd) -> None:
    acsp("fit", "--config", RECIPE, *SHORT)
    (run,) = (tmp_path / "lightning_logs" / "digits_vgg").iterdir()
    with (run / "metrics.csv").open() as table:
        columns = csv.DictReader(table).fieldnames
    assert columns is not None
    assert {"train_loss", "val_loss", "val_acc", "test_loss", "test_acc"} <= set(columns)
    assert list(run.glob("checkpoints/*.ckpt"))
    captured = capfd.readouterr()
    assert "Epoch 0" in captured.out + captured.err
    assert "test_loss" in captured.out

    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 1
    assert saved["seed_everything"] == 0
    acsp("validate", "--config", RECIPE, *SHORT)
    acsp("predict", "--config", RECIPE, *SHORT, "--trainer.logger=false")


def test_a_fit_without_test_data_ends_without_a_test(acsp, tmp_path: Path, capfd) -> None:
    acsp("fit", "--config", RECIPE, *SHORT, f"--data={__name__}.NoTestData")
    assert "test_loss" not in capfd.readouterr().out


def test_printed_configuration_reads_as_itself(acsp, tmp_path: Path, capsys) -> None:
    def printed(recipe: Path) -> str:
        with pytest.raises(SystemExit) as end:
            acsp("fit", "--config", recipe, "--print_config")
        assert end.value.code == 0
        return str(capsys.readouterr().out)

    first = printed(RECIPE)
    copy = tmp_path / "copy.yaml"
    copy.write_text(first)
    assert printed(copy) == first
    assert yaml.safe_load(first)["model"]["init_args"]["network"]["init_args"]["stages"]


def test_fit_help_names_the_trainer(acsp, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        acsp("fit", "--help")
    assert end.value.code == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


def shown(acsp, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        acsp(*words)
    assert end.value.code == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["preview", "fit", "test"])
def test_the_options_of_a_command_come_before_those_of_the_trainer(command, acsp, capsys) -> None:
    lines = shown(acsp, capsys, command, "--help").splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "options:",
        f"{command} options:",
        "Trainer:",
        "network: a LightningModule:",
        "data: a LightningDataModule:",
    ]
    own = lines[lines.index(titles[1]) : lines.index(titles[2])]
    assert any(line.strip().startswith("--ckpt_path") for line in own)


def test_help_of_the_callback_lists_its_options_and_no_class_of_torch(acsp, capsys) -> None:
    name = "--trainer.callbacks.help=acsp_lightning.ACSPPruningCallback"
    text = shown(acsp, capsys, "fit", name)
    assert "--trainer.callbacks.copies" in text
    assert "known subclasses" not in text
    assert len(text.splitlines()) < 280


def test_a_configuration_of_a_command_line_with_fixed_classes(
    acsp, own: str, tmp_path: Path, monkeypatch, capfd
) -> None:
    checkpoint = from_own_command_line(own, tmp_path / "run", monkeypatch)
    config = checkpoint.parents[1] / "config.yaml"
    with pytest.raises(SystemExit) as end:
        acsp("fit", "--config", config)
    assert end.value.code == 2
    error = capfd.readouterr().err.rpartition("acsp-lightning fit: error: ")[2]
    assert "has a model and a data without class_path" in error
    assert f"fit --config {config} --model=my_module.MyModel --data=my_module.MyData" in error
    named = [f"--model={own}.Small", f"--data={own}.Data", "--trainer.logger=false"]
    acsp("fit", "--config", config, *named)


def test_what_a_class_says_of_its_arguments_is_heard(acsp, capfd) -> None:
    recipe = RECIPE.parent / "cifar10_resnet56.yaml"
    with pytest.raises(SystemExit) as end:
        acsp("fit", "--config", recipe, "--model.weights=nowhere.pt")
    assert end.value.code == 2
    error = capfd.readouterr().err.rpartition("acsp-lightning fit: error: ")[2]
    assert "There is no file of weights at nowhere.pt" in error


FIT = [
    "fit",
    "--config",
    RECIPE,
    "--trainer.accelerator=cpu",
    "--trainer.callbacks=acsp_lightning.ACSPPruningCallback",
    "--trainer.callbacks.epochs=[0]",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=1",
    "--trainer.log_every_n_steps=1",
]


class NowhereData(DigitsDataModule):
    def prepare_data(self) -> None:
        raise RuntimeError("There are no images in data/; download them first")


class Odd(ImageClassifier):
    """Fails in its first training step, in a way that nobody has foreseen."""

    def training_step(self, batch, batch_idx):
        return batch["image"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epochs=two"], "max_epochs"),
        (["--trainer.nothing=3"], "nothing"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["--ckpt_path=no.ckpt"], "no.ckpt cannot be read"),
        (["--model=nowhere.Module"], "there is no module 'nowhere'"),
        ([f"--data={__name__}.NowhereData"], "There are no images in data/; download them first"),
        (["--trainer.limit_val_batches=0"], "this fit has none"),
        (["--trainer.callbacks.epochs=[7]"], "Raise max_epochs"),
        (["--trainer.callbacks.selection.keep=7"], "keep is 7"),
        (["--trainer.callbacks.selection.flops=0.001"], "flops=0.001 cannot be reached"),
        (['--trainer.callbacks.exclude=["*"]'], "No layer of ImageClassifier can be pruned"),
        (["--trainer.strategy=ddp_spawn", "--trainer.devices=2"], "spawn or fork"),
        (["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=-1"], "Invalid learning rate: -1"),
    ],
)
def test_a_refusal_is_a_message_and_leaves_nothing(acsp, words, message, tmp_path: Path, capfd) -> None:
    (tmp_path / "no.ckpt").write_text("words")
    with pytest.raises(SystemExit) as end:
        acsp(*FIT, *words)
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert message in error.rpartition("acsp-lightning fit: error: ")[2]
    assert "Traceback" not in error
    assert "usage" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["no.ckpt"]


def test_what_nobody_expected_keeps_its_traceback(acsp) -> None:
    with pytest.raises(TypeError):
        acsp(*FIT, f"--model={__name__}.Odd")


def test_classes_of_a_configuration_in_another_folder_are_found_here(acsp, own, tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    content = {
        "model": {"class_path": f"{own}.Small", "init_args": {"hidden": 4}},
        "data": {"class_path": f"{own}.Data"},
        "trainer": {"logger": False, "accelerator": "cpu", "limit_val_batches": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    sys.path.remove(str(tmp_path))  # which the command has to put there
    acsp("validate", "--config", folder / "run.yaml", "--seed_everything=0")
