"""Where the network before the cut is kept, and how it is told from others."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Fit, conv_net, same_state, snapshot
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from acsp_lightning.trainer.uncut import Uncut, digest_of, load_uncut

NAME = "uncut-epoch=3.ckpt"


def network(seed: int = 5, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


def trainer_of(make_trainer: Fit, folder: str | None, checkpoint: str | None) -> pl.Trainer:
    saving = [] if folder is None else [ModelCheckpoint(folder)]
    trainer = make_trainer(*saving, enable_checkpointing=folder is not None)
    trainer.ckpt_path = checkpoint
    return trainer


def write(path: str, net: nn.Module, **content: Any) -> None:
    with fsspec.open(path, "wb") as file:
        torch.save({"state_dict": net.state_dict(), **content}, file)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on the disk, and one on another file system."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


def test_the_uncut_network_is_looked_for_in_three_places(make_trainer: Fit, root: str) -> None:
    beside, written, own = (f"{root}/{name}" for name in ("beside", "written", "own"))
    uncut = network()
    trainer = trainer_of(make_trainer, own, f"{beside}/last.ckpt")
    kept = Uncut(f"{written}/{NAME}", digest_of(uncut.state_dict()))
    places = [f"{folder}/{NAME}" for folder in (beside, written, own)]
    with pytest.raises(FileNotFoundError) as caught:
        load_uncut(network(0), trainer, kept, 3)
    assert ", ".join(f"{place} (no such file)" for place in places) in str(caught.value)
    for place in reversed(places):
        fsspec.filesystem(place.partition(":")[0] if "://" in place else "file").makedirs(
            place.rpartition("/")[0], exist_ok=True
        )
        write(place, uncut)
        found = network(0, width=2)  # as after a cut
        assert load_uncut(found, trainer, kept, 3) == Uncut(place, kept.digest)
        assert same_state(snapshot(found), snapshot(uncut))


def test_another_network_under_the_same_name_is_not_taken(make_trainer: Fit, tmp_path: Path) -> None:
    """Of another seed, another shape, and damaged; the right one elsewhere is found all the same."""
    uncut = network()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    trainer = trainer_of(make_trainer, str(second), str(first / "last.ckpt"))
    kept = Uncut(str(first / NAME), digest_of(uncut.state_dict()))
    for wrong, reason in (
        (network(0), "the weights of another network"),
        (network(5, width=3), "the weights of another network"),
        (nn.Sequential(nn.Linear(2, 3)), "ValueError: "),
    ):
        write(str(first / NAME), wrong)
        with pytest.raises(FileNotFoundError, match="set distillation to None") as caught:
            load_uncut(network(), trainer, kept, 3)
        assert f"{first / NAME} ({reason}" in str(caught.value)
        assert str(caught.value).count(str(first / NAME)) == 1
    whole = first / NAME
    write(str(whole), uncut)
    whole.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(FileNotFoundError, match="is damaged"):
        load_uncut(network(), trainer, kept, 3)
    second.mkdir()
    write(str(second / NAME), uncut)
    assert load_uncut(network(0), trainer, kept, 3).path == str(second / NAME)


def test_a_fit_that_kept_none_has_none(make_trainer: Fit, tmp_path: Path) -> None:
    """Whatever lies beside the checkpoint."""
    write(str(tmp_path / NAME), network())
    trainer = trainer_of(make_trainer, str(tmp_path), str(tmp_path / "last.ckpt"))
    with pytest.raises(FileNotFoundError, match="had no ModelCheckpoint"):
        load_uncut(network(), trainer, None, 3)


class Options:
    """Of the user's, in the hyperparameters that a checkpoint keeps."""


def test_code_in_the_file_is_run_where_the_user_let_it_run(make_trainer: Fit, tmp_path: Path) -> None:
    uncut = network()
    write(str(tmp_path / NAME), uncut, hyper_parameters={"options": Options()})
    trainer = trainer_of(make_trainer, None, str(tmp_path / "last.ckpt"))
    kept = Uncut(str(tmp_path / NAME), digest_of(uncut.state_dict()))
    write(str(trainer.ckpt_path), uncut)  # which was read with weights_only=True
    with pytest.raises(FileNotFoundError, match="weights_only=True refuses"):
        load_uncut(network(0), trainer, kept, 3)
    write(str(trainer.ckpt_path), uncut, hyper_parameters={"options": Options()})
    found = network(0)
    load_uncut(found, trainer, kept, 3)
    assert same_state(snapshot(found), snapshot(uncut))


# -- what tells networks apart -------------------------------------------------------------------------


def test_a_digest_is_that_of_the_weights() -> None:
    state = conv_net().state_dict()
    digest = digest_of(state)
    assert digest == digest_of(deepcopy(state))
    assert digest == digest_of(dict(reversed(state.items())))
    assert digest == digest_of({f"_orig_mod.{name}": tensor for name, tensor in state.items()})
    assert digest == digest_of({**state, "extra": {"no": "tensor"}})
    for name in state:
        changed = {**state, name: state[name].clone()}
        changed[name].view(-1)[-1] += 1
        assert digest_of(changed) != digest, name
    weight = state["fc1.weight"]
    for other in (weight.double(), weight.T, weight.reshape(-1)):
        assert digest_of({**state, "fc1.weight": other}) != digest
    assert digest_of({**state, "more": weight}) != digest
    swapped = {**state, "bn1.weight": state["bn1.bias"], "bn1.bias": state["bn1.weight"]}
    assert digest_of(swapped) != digest


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(()),
        torch.empty(0, 3),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, dtype=torch.bool),
        torch.ones(4, 6)[:, ::2],
        torch.eye(3).to_sparse(),
        torch.ones(2, 3, requires_grad=True) * 2,
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
)
def test_every_kind_of_tensor_has_a_digest(tensor: Any) -> None:
    assert digest_of({"a": tensor}) == digest_of({"a": tensor.detach().clone()})
    if tensor.numel():
        assert digest_of({"a": tensor}) != digest_of({"a": torch.zeros_like(tensor)})
