import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.commands import OWN, RECIPE

from acsp_lightning.cli import main


@pytest.fixture
def acsp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command in an empty directory, as the shell would."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["acsp-lightning", *map(str, words)])
        main()

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the current directory, under a name that was never imported."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


@pytest.fixture(scope="session")
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
                "read_batch": "helpers.letters.split",
                "report_plots": False,
                "latency_batch_sizes": [1],
            },
        },
    ]
    content["model"]["class_path"] = "helpers.letters.LetterClassifier"
    content["data"]["class_path"] = "helpers.letters.Letters"
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
