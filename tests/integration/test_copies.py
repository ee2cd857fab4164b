"""Whoever holds a copy of the network, or tensors of it, holds the smaller one after a cut."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Saver,
    Scripted,
    at_least_six,
    callback,
    differences,
    job,
    noisy_images,
    only_whole,
    same_state,
    snapshot,
    widths,
)
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from acsp_lightning import Guard, PruningPlan, SelectionConfig
from acsp_lightning.report.step import Outcome

HALVED = {name.removeprefix("net."): width for name, width in ALL_HALVED.items()}


class Averaged(Classifier):
    """Keeps an average of its network as a submodule that forward never calls."""

    def __init__(self, make: Callable[[nn.Module], nn.Module] = copy.deepcopy, lr: float = 0.05) -> None:
        super().__init__(configure=lambda module: torch.optim.SGD(module.net.parameters(), lr))
        self.average = make(self.net)

    def copied(self) -> nn.Module:
        return self.average.module if isinstance(self.average, AveragedModel) else self.average

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.copied().parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.5)
            for slow, fast in zip(self.copied().buffers(), self.net.buffers(), strict=True):
                slow.copy_(fast)


class Taught(Scripted):
    """Keeps a frozen teacher of the same shape."""

    def __init__(self) -> None:
        super().__init__(at_least_six)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)


class Target(Scripted):
    """Keeps a frozen average, as methods with target networks do."""

    def __init__(self) -> None:
        super().__init__(at_least_six)
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.target.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.5)


class Peers(Scripted):
    """Trains a twin beside its network, as in mutual learning."""

    def __init__(self, momentum: float = 0.0, *, manual: bool = False) -> None:
        super().__init__(
            at_least_six, configure=lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum)
        )
        self.peer = copy.deepcopy(self.net)
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, index: int) -> Any:
        loss = super().training_step(batch, index) + functional.cross_entropy(
            self.peer(batch[0]), batch[1]
        )
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return None


class Holder(pl.Callback):
    """A user's own average, in whatever form."""

    def __init__(self, make: Callable[[pl.LightningModule], Any]) -> None:
        self.make = make
        self.held: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.held = self.make(pl_module)


class Object:
    """As torch_ema keeps its averages: a list in the order of the parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.shadow_params = [p.detach().clone() for p in module.parameters()]


class Wrapper:
    """As averages of other packages keep a module."""

    def __init__(self, module: nn.Module) -> None:
        self.average = copy.deepcopy(module)


def tensors(held: Any) -> Iterable[Tensor]:
    if isinstance(held, nn.Module):
        return held.parameters()
    if isinstance(held, Wrapper):
        return held.average.parameters()
    if isinstance(held, Object):
        return held.shadow_params
    return held.values() if isinstance(held, dict) else held


def shapes(values: Iterable[Tensor]) -> list[torch.Size]:
    return [value.shape for value in values]


@pytest.mark.parametrize("make", [copy.deepcopy, AveragedModel])
def test_a_submodule_that_averages_is_cut_along(fit: Fit, make: Any) -> None:
    module = Averaged(make)
    fit(module, [callback(0)])
    assert widths(module.net) == HALVED
    assert shapes(module.copied().parameters()) == shapes(module.net.parameters())


def test_a_copy_of_the_very_weights_stays_one(fit: Fit) -> None:
    module = Averaged(lr=0.0)
    fit(module, [callback(0)])
    for name, value in module.net.named_parameters():
        if "bn" not in name:  # statistics of its own stay, and scales with them
            torch.testing.assert_close(module.copied().get_parameter(name), value)


IMAGES = noisy_images(18, seed=2).tensors[0]
FORMS = {
    "module": lambda m: copy.deepcopy(m.net),
    "list of modules": lambda m: [copy.deepcopy(m.net)],
    "dict by name": lambda m: {n: p.detach().clone() for n, p in m.named_parameters()},
    "dict by name in the part": lambda m: {n: p.detach().clone() for n, p in m.net.named_parameters()},
    "list": lambda m: [p.detach().clone() for p in m.parameters()],
    "object": Object,
    "object with a module": lambda m: Wrapper(m.net),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_callback_holds_is_cut_along(fit: Fit, form: str) -> None:
    module, holder = Classifier(), Holder(FORMS[form])
    fit(module, [holder, callback(0)])
    held = holder.held[0] if form == "list of modules" else holder.held
    assert shapes(tensors(held)) == shapes(module.parameters())


@pytest.mark.parametrize("part", [False, True])
def test_a_state_dict_is_cut_along(fit: Fit, part: bool) -> None:
    def state(module: Any) -> dict[str, Tensor]:
        return {n: v.clone() for n, v in (module.net if part else module).state_dict().items()}

    class Follow(Holder):
        """An average without memory: it has to compute what the network that was cut computes."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            for name, value in state(pl_module).items():
                self.held[name].copy_(value)

        def on_pruned(self, trainer: Any, pl_module: Any, plan: Any, sliced: Any) -> None:
            live, cut = (copy.deepcopy(pl_module.net).eval() for _ in range(2))
            cut.load_state_dict({n.removeprefix("net."): v for n, v in self.held.items()})
            self.outputs = live(IMAGES), cut(IMAGES)

    module, follow = Classifier(), Follow(state)
    fit(module, [follow, callback(0)])
    assert widths(module) == ALL_HALVED
    torch.testing.assert_close(*follow.outputs)


@pytest.mark.parametrize("form", ["list of modules", "object with a module"])
def test_what_the_module_hides_from_its_state_dict_is_cut_along(fit: Fit, form: str) -> None:
    module = Classifier()
    module.hidden = FORMS[form](module)
    fit(module, [callback(0)])
    held = module.hidden[0] if form == "list of modules" else module.hidden
    assert shapes(tensors(held)) == shapes(module.parameters())


def test_what_a_submodule_holds_is_cut_along(fit: Fit) -> None:
    module = Classifier()
    module.net.start = {n: p.detach().clone() for n, p in module.net.named_parameters()}
    fit(module, [callback(0)])
    assert shapes(module.net.start.values()) == shapes(module.parameters())


def test_an_average_that_begins_after_the_cut_is_named_by_the_user(fit: Fit) -> None:
    class Later(Averaged):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.current_epoch > 0:
                super().on_train_batch_end()

    module = Later()
    module.average.requires_grad_(False)
    fit(module, [callback(0, copies=lambda m: [m.average])])
    assert shapes(module.average.parameters()) == shapes(module.net.parameters())


def test_a_frozen_teacher_of_the_same_shape_stays_as_it_is(fit: Fit) -> None:
    module = Taught()
    before = snapshot(module.teacher)
    with pytest.warns(
        UserWarning, match=r"Taught\.teacher is a frozen Sequential .* stays whole, as a teacher"
    ):
        fit(module, [callback(0)])
    assert widths(module.net) == HALVED
    assert same_state(snapshot(module.teacher), before)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.0, "manual": True}],
    ids=["with momentum", "no state", "no gradients left"],
)
def test_a_twin_that_learns_by_itself_stays_whole(fit: Fit, options: dict[str, Any]) -> None:
    """Whether its optimizer keeps a state of it or not, and whenever gradients are taken away."""
    module = Peers(**options)
    fit(module, [callback(0)])
    assert widths(module.net) == HALVED
    assert widths(module.peer) == {name.removeprefix("net."): width for name, width in WIDTHS.items()}


def test_what_nobody_finds_is_named_by_the_user(fit: Fit) -> None:
    module = Classifier()
    hidden = copy.deepcopy(module.net)
    fit(module, [callback(0, copies=lambda _: [hidden])])
    assert shapes(hidden.parameters()) == shapes(module.net.parameters())


def test_what_is_no_copy_is_refused_before_training(fit: Fit) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match="copies returned a Linear whose parameters do not have"):
        fit(module, [callback(0, copies=lambda _: [nn.Linear(2, 2)])])
    assert module.steps == 0


def test_a_lookalike_is_named(fit: Fit) -> None:
    def wider(module: pl.LightningModule) -> nn.Module:
        twin = copy.deepcopy(module.net)
        twin.fc2 = nn.Linear(10, 7)
        return twin

    with pytest.warns(UserWarning, match="Holder holds a Sequential with the layers of the network in"):
        fit(Classifier(), [Holder(wider), callback(0)])


@pytest.mark.parametrize("form", ["module", "dict by name", "object"])
def test_a_roll_back_reaches_copies_too(fit: Fit, form: str) -> None:
    class Seen(pl.Callback):
        before: list[Tensor]

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                self.before = [value.detach().clone() for value in tensors(holder.held)]

    module, holder, seen = Scripted(only_whole), Holder(FORMS[form]), Seen()
    pruning = callback(0, guard=Guard(0.1, "quality"), recovery="none", layers_per_epoch=1)
    fit(module, [holder, seen, pruning], max_epochs=5)
    assert [step.rolled_back for step in pruning.steps] == [True, True]
    for value, before in zip(tensors(holder.held), seen.before, strict=True):
        assert torch.equal(value, before)


@pytest.mark.filterwarnings("ignore:.* is a frozen Sequential with the weights of the network")
@pytest.mark.filterwarnings("ignore:forward calls '(peer|teacher)")
@pytest.mark.parametrize("make", [Target, Taught, Peers])
def test_a_resumed_fit_takes_copies_for_what_they_were(
    make: Callable[[], Scripted], make_trainer: Fit, tmp_path: Path
) -> None:
    """Between a capture and its cut, between the cut and its roll back, and before it is made again."""

    def run(*others: pl.Callback, file: Path | None = None) -> dict[str, Any]:
        pruning = callback(0, guard=Guard(0.1, "quality"), recovery="none")
        return job(make_trainer, pruning, *others, module=make(), ckpt_path=file, max_epochs=4)

    whole = run(Saver(tmp_path))
    assert [step["verdict"]["outcome"] for step in whole["steps"]] == [Outcome.HALVED, Outcome.RECOVERED]
    for moment in ("epoch0-end", "epoch1-step8-validated", "epoch1-end"):
        again = run(file=tmp_path / f"{moment}.ckpt")
        for part in ("widths", "weights", "optimizers"):
            assert not differences(again[part], whole[part]), moment


def test_hooks_are_told_what_was_cut(fit: Fit) -> None:
    told: list[tuple[str, Any, Any]] = []

    class Told(Scripted):
        def on_pruned(self, plan: Any, sliced: Any) -> None:
            told.append(("module", plan, sliced))

    class Listener(pl.Callback):
        def on_pruned(self, trainer: Any, pl_module: Any, plan: Any, sliced: Any) -> None:
            told.append(("callback", plan, sliced))

    module = Told(only_whole)
    pruning = callback(0, guard=Guard(0.1, "quality"), recovery="none")
    fit(module, [pruning, Listener()], max_epochs=3)
    # Cut, rolled back, cut again at half the depth, rolled back.
    assert [who for who, *_ in told] == ["module", "callback"] * 4
    _, plan, sliced = told[0]
    assert isinstance(plan, PruningPlan)
    assert plan.to_dict() == pruning.steps[0].plan.to_dict()
    names = {entry.name for entry in sliced}
    assert {"net.conv1.weight", "net.bn1.bias", "net.fc2.weight"} <= names
    live = dict(module.named_parameters())
    assert all(entry.parameter is live[entry.name] for entry in sliced)
    assert told[2][1:] == (None, ())  # rolled back


@pytest.mark.parametrize("average", [EMAWeightAveraging, StochasticWeightAveraging])
def test_accuracies_do_not_depend_on_the_order_of_callbacks(
    fit: Fit, average: Any, logged: list[str]
) -> None:
    def run(first: bool) -> tuple[Any, list[str]]:
        averaging = (
            average(decay=0.7) if average is EMAWeightAveraging else average(0.01, swa_epoch_start=1)
        )
        pruning = callback(1, selection=SelectionConfig(keep=0.7))
        logged.clear()
        fit(Classifier(), [averaging, pruning] if first else [pruning, averaging], max_epochs=4)
        lines = [
            line for line in "\n".join(logged).splitlines() if line.startswith(("accuracy", "the acc"))
        ]
        return pruning.steps[0], lines

    (one, lines), (other, others) = run(True), run(False)
    assert (one.accuracy_before, one.accuracy_after) == (other.accuracy_before, other.accuracy_after)
    assert lines == others
    assert one.averaged == (average is EMAWeightAveraging)
    said = "(averaged weights)" if one.averaged else "at the end is that of averaged weights"
    assert said in "\n".join(lines)


def test_with_an_average_the_table_is_of_the_average_that_validation_sees(fit: Fit) -> None:
    """Every figure is the accuracy of the averaged copy on the validation samples, counted here."""
    averaging = EMAWeightAveraging(decay=0.7)
    found: dict[str, float] = {}

    def accuracy(module: nn.Module) -> float:
        from helpers.fits import val_loader

        right = [(module.eval()(x).argmax(1) == y).float() for x, y in val_loader()]
        return float(torch.cat(right).mean())

    class Before(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                assert averaging._average_model is not None
                found["before"] = accuracy(copy.deepcopy(averaging._average_model.module))

    class After(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                assert averaging._average_model is not None
                found["after"] = accuracy(copy.deepcopy(averaging._average_model.module))

    pruning = callback(1)
    fit(Classifier(), [Before(), averaging, pruning, After()], max_epochs=4)
    (step,) = pruning.steps
    assert step.averaged
    assert step.accuracy_before == pytest.approx(found["before"])
    assert step.accuracy_after == pytest.approx(found["after"])
