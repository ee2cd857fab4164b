from pathlib import Path

import pytest
import yaml
from helpers.commands import RECIPES, refused, run

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def test_all_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run("recipe", "list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(len(line.split()) > 3 for line in lines)


def test_a_recipe_is_copied_to_be_edited(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("recipe", "copy", "digits_vgg")
    assert "acsp-lightning fit --config digits_vgg.yaml" in capsys.readouterr().out
    assert Path("digits_vgg.yaml").read_text() == (RECIPES / "digits_vgg.yaml").read_text()
    run("recipe", "copy", "cifar10_resnet56", tmp_path / "mine.yaml")
    assert yaml.safe_load(Path("mine.yaml").read_text())["model"]

    Path("mine.yaml").write_text("edited")
    message = refused(capsys, "recipe", "copy", "digits_vgg", "mine.yaml")
    assert "mine.yaml exists already; name another file" in message
    assert Path("mine.yaml").read_text() == "edited"
    assert "there is no recipe 'digits'; there are " in refused(capsys, "recipe", "copy", "digits")
    assert "nowhere/a.yaml cannot be written: No such file" in refused(
        capsys, "recipe", "copy", "digits_vgg", "nowhere/a.yaml"
    )
