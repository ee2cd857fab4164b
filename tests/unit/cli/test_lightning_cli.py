import csv
from pathlib import Path

import pytest
import yaml
from helpers.commands import RECIPE, SHORT

# LightningCLI 2.6 calls methods of jsonargparse that 4.49 deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|[\s\S]*was\s+deprecated\s+in\s+v4\.49)"
)


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


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("--model.weights=nowhere.pt", FileNotFoundError, "There is no file of weights at nowhere.pt"),
        ("--model.teacher_weight=2", ValueError, "must lie between 0 and 1"),
    ],
)
def test_what_a_class_says_of_its_arguments_is_heard(acsp, argument, error, message) -> None:
    teacher = ["--model.teacher=acsp_lightning.zoo.resnet20"]
    recipe = RECIPE.parent / "cifar10_resnet56.yaml"
    with pytest.raises(error, match=message):
        acsp("fit", "--config", recipe, *teacher, argument)
