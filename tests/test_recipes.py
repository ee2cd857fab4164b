"""Every recipe is built from its YAML, says what it should, and runs for a few batches."""

from pathlib import Path

import pytest
import yaml

from acsp_lightning import SelectionConfig
from acsp_lightning.cli import main

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def callback_arguments(recipe: Path) -> dict:
    (callback,) = yaml.safe_load(recipe.read_text())["trainer"]["callbacks"]
    return callback["init_args"]


def test_the_paper_recipe_is_the_paper_preset() -> None:
    (recipe,) = [path for path in RECIPES if path.stem == "digits_vgg_paper"]
    assert SelectionConfig(**callback_arguments(recipe)["selection"]) == SelectionConfig.paper()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_cuts(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe with its first cut after epoch 0 and two short epochs."""
    content = yaml.safe_load(recipe.read_text())
    content["trainer"].update(max_epochs=2, limit_train_batches=16, accelerator="cpu")
    content["trainer"]["callbacks"][0]["init_args"]["epochs"] = [0]
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["acsp-lightning", "fit", f"--config={short}"])
    main()
    (record,) = tmp_path.glob("lightning_logs/*/*/acsp/*.json")
    cut = yaml.safe_load(record.read_text())
    assert cut["after"]["flops"] < cut["before"]["flops"]
