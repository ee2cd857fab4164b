import pickle
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier, load_weights


def small(classes: int = 3) -> VGG:
    return VGG([[4, 6]], num_classes=classes, in_channels=1)


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 7},
    ],
)
def test_state_dicts_as_they_circulate_load(tmp_path: Path, wrap) -> None:
    trained, fresh = small(), small()
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pt")
    assert not same(fresh, trained)
    load_weights(fresh, str(tmp_path / "weights.pt"))
    assert same(fresh, trained)


def test_checkpoints_of_the_classifier_load(tmp_path: Path, make_trainer) -> None:
    module = ImageClassifier(small(classes=10))
    trainer: pl.Trainer = make_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(module, datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(ImageClassifier(small(classes=10), weights=tmp_path / "last.ckpt"), module)


def without(name: str) -> dict[str, torch.Tensor]:
    state = small().state_dict()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (without("classifier.bias"), r"it has no 'classifier\.bias' \(1 names missing, 0 unknown\)"),
        (small(classes=5).state_dict(), r"'classifier\.weight' has shape \(5, 6\) instead of \(3, 6\)"),
        ({**small().state_dict(), "extra": torch.zeros(1)}, "'extra' has no place"),
        (nn.Linear(2, 2).state_dict(), r"of another network than VGG: it has no 'features\.stage1"),
        ({}, "it has no 'features"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, state, match: str) -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=match):
        ImageClassifier(network, weights=tmp_path / "weights.pt")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Sneaky:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.write_bytes(b"no weights at all"), "cannot be read as weights"),
        (lambda path: path.write_bytes(b""), "cannot be read as weights"),
        (lambda path: path.write_bytes(pickle.dumps(Sneaky())), "cannot be read as weights"),
        (lambda path: torch.save(torch.zeros(2), path), "holds Tensor, which is no state dict"),
        (lambda path: torch.save({"epoch": 3}, path), r"holds \['epoch'\], which is no state dict"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, write, match: str, capsys) -> None:
    write(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=match):
        load_weights(small(), tmp_path / "weights.pt")
    assert "code ran" not in capsys.readouterr().out


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read as weights"):
        load_weights(small(), path)


def test_a_missing_file_is_told_with_the_place_looked_in(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*none\.pt"):
        load_weights(small(), tmp_path / "none.pt")
