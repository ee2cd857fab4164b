from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, val_loader

from acsp_lightning.cli import sources
from acsp_lightning.cli.refusals import RefusalError
from acsp_lightning.cli.sources import Sources

MODEL = "acsp_lightning.zoo.ImageClassifier"
DATA = "acsp_lightning.zoo.DigitsDataModule"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def saved(path: Path, **content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_configuration_is_found_where_a_run_leaves_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert sources.find_config(checkpoint) is None
    far = written(tmp_path / "config.yaml", "")
    assert sources.find_config(checkpoint) == far
    near = written(tmp_path / "version_0" / "config.yaml", "")
    assert sources.find_config(checkpoint) == near


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("{model: {a: 1}, data: {b: 2}, optimizer: {c: 3}}", {"model": {"a": 1}, "data": {"b": 2}}),
        ("{fit: {model: {a: 1}, trainer: {}}, extra: 1}", {"model": {"a": 1}, "trainer": {}}),
        ("{seed_everything: 3}", {"seed_everything": 3}),
    ],
)
def test_of_a_configuration_what_builds_a_network(
    text: str, content: dict[str, Any], tmp_path: Path
) -> None:
    assert sources.read_config(written(tmp_path / "c.yaml", text)) == content


@pytest.mark.parametrize(
    ("text", "message"), [("model: [1, 2", "cannot be read as YAML"), ("[1, 2]", "holds a list")]
)
def test_what_is_no_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=rf"c\.yaml.*{message}"):
        sources.read_config(written(tmp_path / "c.yaml", text))


def test_files_are_named_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a folder; give a file in it"):
        sources.check_file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.yaml does not exist"):
        sources.check_file(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.Model", "there is no module 'no_such_package'"),
        ("acsp_lightning.zoo.nowhere.Model", r"no module 'acsp_lightning\.zoo\.nowhere'"),
        ("acsp_lightning.zoo.Nothing", "has no class 'Nothing'"),
        ("acsp_lightning.zoo.resnet20", "has no class 'resnet20'"),
    ],
)
def test_classes_that_are_not_there(path: str, message: str) -> None:
    with pytest.raises(RefusalError, match=rf"--model={path}: .*{message}"):
        sources.locate("model", path)


def test_errors_of_a_users_module_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "needs_more.py", "import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        sources.locate("model", "needs_more.Model")


def test_arguments_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = saved(
        tmp_path / "last.ckpt",
        datamodule_hyper_parameters={"batch_size": 7, "seed": 3, "_class_path": DATA},
    )
    found = sources.with_saved_arguments("data", DATA, sources.read_checkpoint(checkpoint))
    assert found == {"class_path": DATA, "dict_kwargs": {"batch_size": 7, "seed": 3}}
    module, _, name = found["class_path"].rpartition(".")
    data = getattr(__import__(module, fromlist=[name]), name)(**found["dict_kwargs"])
    assert data.batch_size == 7


def test_the_command_line_completes_a_configuration(tmp_path: Path) -> None:
    config = written(tmp_path / "c.yaml", f"model: {{lr: 1}}\ndata: {{class_path: {DATA}}}\n")
    found = Sources(["export"], [config], {"model": MODEL}, None).contents()
    assert found == [
        {"model": {"class_path": MODEL, "init_args": {"lr": 1}}, "data": {"class_path": DATA}}
    ]
    with pytest.raises(RefusalError, match=r"has a model without class_path.*--model="):
        Sources(["export"], [config], {}, None).contents()


def test_what_is_missing_is_asked_for_with_a_command_that_works(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "last.ckpt", hyper_parameters={"_class_path": MODEL})
    words = ["export", str(checkpoint)]
    with pytest.raises(RefusalError, match=rf"acsp-lightning export .*last\.ckpt --model={MODEL}"):
        Sources(words, [], {}, checkpoint).contents()


def test_a_network_without_data() -> None:
    class WithData(Classifier):
        def val_dataloader(self) -> Any:
            return val_loader()

    found = Sources(["preview"], [], {"model": MODEL}, None)
    found.check_data(WithData(), None)
    found.check_data(Classifier(), pl.LightningDataModule())
    with pytest.raises(RefusalError, match="what its data are built from"):
        found.check_data(Classifier(), None)


@pytest.mark.parametrize("damage", ["torn", "code"])
def test_checkpoints_that_cannot_be_read(damage: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", a=torch.zeros(99))
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:200])
    else:
        saved(path, a=Path("x"))
    message = "is damaged" if damage == "torn" else "weights_only=True"
    with pytest.raises((ValueError, RefusalError), match=message):
        sources.read_checkpoint(path)
