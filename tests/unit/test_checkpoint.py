from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.mixed import Mixed, assert_same, cut
from torch import nn

from acsp_lightning import PrunedCheckpointMixin, load_pruned, restore_structure


@pytest.fixture
def pruned() -> Mixed:
    torch.manual_seed(0)
    model = Mixed().eval()
    cut(model)
    return model


def test_the_file_shrinks_a_fresh_model(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    assert_same(load_pruned(Mixed(), tmp_path / "weights.pt"), pruned)


def test_a_lightning_checkpoint_is_understood(pruned: Mixed, tmp_path: Path) -> None:
    torch.save({"state_dict": pruned.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    assert_same(load_pruned(Mixed(), tmp_path / "last.ckpt"), pruned)


def test_the_file_grows_a_pruned_model(pruned: Mixed, tmp_path: Path) -> None:
    whole = Mixed()
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    assert_same(load_pruned(pruned, tmp_path / "whole.pt"), whole)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="neither a Lightning checkpoint nor a state dict"):
        load_pruned(Mixed(), tmp_path / "list.pt")


# -- names that differ from the file's -------------------------------------------------------------


class Holder(pl.LightningModule):
    """A network beside other things, as modules of Lightning hold it."""

    def __init__(self, network: nn.Module, teacher: bool = False) -> None:
        super().__init__()
        self.network = network
        if teacher:
            self.teacher = Mixed()


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network,
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "both": lambda network: nn.DataParallel(compiled(network)),
    "other way round": lambda network: compiled(nn.DataParallel(network)),
}


@pytest.mark.parametrize("now", WRAPPERS)
@pytest.mark.parametrize("then", WRAPPERS)
def test_wrappers_make_no_difference(then: str, now: str, pruned: Mixed, tmp_path: Path) -> None:
    torch.save(Holder(WRAPPERS[then](pruned)).state_dict(), tmp_path / "cut.pt")
    fresh = Mixed()
    assert load_pruned(Holder(WRAPPERS[now](fresh)), tmp_path / "cut.pt")
    assert_same(fresh, pruned)


def test_a_whole_module_that_was_wrapped(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(compiled(nn.DataParallel(Holder(pruned))).state_dict(), tmp_path / "cut.pt")
    assert_same(load_pruned(Holder(Mixed()), tmp_path / "cut.pt").network, pruned)


class OwnName(nn.Module):
    """Calls a part of its own as a wrapper would."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.fc = nn.Linear(2, 3), nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.zeros(1))


def test_a_part_that_is_called_as_wrappers_are(tmp_path: Path) -> None:
    saved = OwnName()
    for name, then, now in (("a", saved, OwnName()), ("b", nn.DataParallel(saved), OwnName())):
        torch.save(then.state_dict(), tmp_path / name)
        load_pruned(now, tmp_path / name)
        assert torch.equal(now.module.weight, saved.module.weight)
        load_pruned(nn.DataParallel(now), tmp_path / name)


def test_the_mixin_loads_what_was_compiled(pruned: Mixed, tmp_path: Path) -> None:
    class Mine(PrunedCheckpointMixin, pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Mixed()

    torch.save(
        {"state_dict": Holder(compiled(pruned)).state_dict(), "pytorch-lightning_version": "2.6.0"},
        tmp_path / "cut.ckpt",
    )
    assert_same(Mine.load_from_checkpoint(tmp_path / "cut.ckpt", map_location="cpu").network, pruned)


def test_a_mixin_that_comes_too_late_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Put PrunedCheckpointMixin first: class Late\(PrunedCheck"):
        type("Late", (Holder, PrunedCheckpointMixin), {})
    with pytest.raises(TypeError, match="Deep has Other before PrunedCheckpointMixin"):
        type("Deep", (type("Other", (Holder,), {}), PrunedCheckpointMixin), {})
    early = type("Early", (PrunedCheckpointMixin, Holder), {})
    type("Child", (early,), {})
    type("Twice", (early, Holder), {})
    type("Diamond", (type("Other", (pl.LightningModule,), {}), early), {})
    type("Base", (PrunedCheckpointMixin,), {})


@pytest.mark.parametrize("prefix", ["network.", "network"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_network_out_of_a_module(wrapper: str, prefix: str, pruned: Mixed, tmp_path: Path) -> None:
    holder = Holder(WRAPPERS[wrapper](pruned), teacher=True)
    torch.save({"state_dict": holder.state_dict(), "epoch": 3}, tmp_path / "cut.ckpt")
    assert_same(load_pruned(Mixed(), tmp_path / "cut.ckpt", prefix=prefix), pruned)


def test_a_network_out_of_a_module_that_was_compiled_itself(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(compiled(Holder(pruned)).state_dict(), tmp_path / "cut.pt")
    assert_same(load_pruned(Mixed(), tmp_path / "cut.pt", prefix="network."), pruned)


def test_a_prefix_that_is_not_there_is_told_with_those_that_are(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(Holder(pruned, teacher=True).state_dict(), tmp_path / "cut.pt")
    message = r"no names behind the prefix 'net\.'\. There are 'network\.', 'teacher\.'; give one"
    with pytest.raises(ValueError, match=message):
        load_pruned(Mixed(), tmp_path / "cut.pt", prefix="net.")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="There are none with a prefix"):
        load_pruned(Mixed(), tmp_path / "bare.pt", prefix="net.")


def test_a_prefix_that_is_needed_is_told(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(Holder(compiled(pruned), teacher=True).state_dict(), tmp_path / "module.pt")
    message = r"Behind 'network\.' and 'teacher\.' the file has all of its names: .* prefix='network\.'"
    with pytest.raises(ValueError, match=message):
        load_pruned(Mixed(), tmp_path / "module.pt")
    torch.save(pruned.state_dict(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match=r"It is one of its submodule 'network': load it into that"):
        load_pruned(Holder(Mixed()), tmp_path / "network.pt")


def test_restore_structure_says_what_wrappers_do_to_names(pruned: Mixed) -> None:
    with pytest.raises(ValueError, match=r"torch\.compile's '_orig_mod\.' .* load_pruned understands"):
        restore_structure(Holder(Mixed()), Holder(compiled(pruned)).state_dict())


# -- the instance that is loaded into --------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_modes_stay_as_the_instance_had_them(training: bool, pruned: Mixed, tmp_path: Path) -> None:
    torch.save(pruned.train(not training).state_dict(), tmp_path / "cut.pt")
    fresh = Mixed().train(training)
    fresh.norm.eval()
    assert load_pruned(fresh, tmp_path / "cut.pt") is fresh
    assert fresh.training is fresh.head.training is training
    assert not fresh.norm.training


class Late(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None

    def build(self) -> None:
        self.network = Mixed()


class InConfigureModel(Late):
    def configure_model(self) -> None:
        self.build()


class InSetup(Late):
    def setup(self, stage: str) -> None:
        self.build()


class Partly(InConfigureModel):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2)


class Empty(nn.Module):
    """Without any hook of Lightning."""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            InConfigureModel,
            r"InConfigureModel has no parameters yet.*call its configure_model\(\), then",
        ),
        (InSetup, r"InSetup has no parameters yet.*call its setup\('fit'\), then load"),
        (Empty, r"Empty has no parameters yet.*configure_model\(\) or setup\(\)"),
        (
            Partly,
            r"only the file has 'network\..*'\. Is it built in configure_model\(\)\? Then call that",
        ),
    ],
)
def test_a_network_that_is_not_built_yet(kind: type[nn.Module], message: str, tmp_path: Path) -> None:
    built = InSetup()
    built.build()
    state = {**built.state_dict(), **(kind().state_dict())}
    torch.save(state, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=message):
        load_pruned(kind(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=message):
        restore_structure(kind(), state)


def test_a_network_that_was_built_first(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(Holder(pruned).state_dict(), tmp_path / "cut.pt")
    late = InConfigureModel()
    late.configure_model()
    assert_same(load_pruned(late, tmp_path / "cut.pt").network, pruned)


class Pickled(PrunedCheckpointMixin, Holder):
    """Importable, as pickle wants it."""


def test_a_module_with_the_mixin_can_be_pickled(pruned: Mixed, tmp_path: Path) -> None:
    module = Pickled(Mixed())
    torch.save(module, tmp_path / "module.pt")
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    again.load_state_dict(Holder(pruned).state_dict())
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in Holder(pruned).named_parameters()
    }
