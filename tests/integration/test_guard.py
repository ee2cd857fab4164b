"""The accuracy guard: cuts that do not recover are undone to the bit, and made again half as deep."""

import json
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import (
    ALL_HALVED,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    Scripted,
    at_least_six,
    callback,
    cut_network,
    only_whole,
    same_state,
    snapshot,
    train_loader,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn

from acsp_lightning import ACSPPruningCallback, Guard, SelectionConfig
from acsp_lightning.report.step import Outcome

HALF_AS_DEEP = {"net.conv1": 6, "net.conv2": 5, "net.fc1": 8, "net.fc2": 3}


def guarded(
    *epochs: int, patience: int = 1, mode: Literal["max", "min"] = "max", **options: Any
) -> ACSPPruningCallback:
    guard = Guard(0.1, "quality", mode, patience)
    return callback(*epochs, **{"guard": guard, "recovery": "none", **options})


class Momenta(pl.Callback):
    """Weights, momentum and learning rate as every epoch begins, before anything is cut or undone."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in pl_module.parameters()}
        momentum = {
            f"momentum of {name}": optimizer.state[p]["momentum_buffer"].clone()
            for name, p in pl_module.named_parameters()
            if p in optimizer.state
        }
        self.seen.append({**snapshot(pl_module), **momentum})
        self.rates.append(optimizer.param_groups[0]["lr"])


def outcomes(pruning: ACSPPruningCallback) -> list[Outcome | None]:
    return [step.verdict and step.verdict.outcome for step in pruning.steps]


def test_a_cut_that_recovers_stays(fit: Fit, logged: list[str]) -> None:
    module, pruning = Scripted(lambda width: 0.9 if width == 8 else 0.81), guarded()
    fit(module, [pruning], max_epochs=4)
    assert widths(module) == ALL_HALVED
    (step,) = pruning.steps
    assert step.verdict is not None
    assert step.verdict.outcome is Outcome.RECOVERED
    assert (step.verdict.before, step.verdict.after) == pytest.approx((0.9, 0.81))
    assert "Guard: cut after epoch 0 recovered (quality 0.9000 -> 0.8100, allowed 0.8000)" in "\n".join(
        logged
    )


@pytest.mark.parametrize("patience", [1, 2])
def test_a_cut_that_does_not_is_undone_and_made_at_half_the_depth(
    fit: Fit, patience: int, tmp_path: Path, logged: list[str]
) -> None:
    module, before, after = Scripted(at_least_six), Momenta(), Momenta()
    pruning = guarded(1, patience=patience, report_dir=tmp_path)
    fit(module, [before, pruning, after], max_epochs=7)
    assert widths(module) == HALF_AS_DEEP
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.RECOVERED]
    first, second = pruning.steps
    assert (first.rolled_back, first.again, second.rolled_back, second.again) == (
        True,
        False,
        False,
        True,
    )
    assert first.epoch == second.epoch == 1

    # The second cut is one of the weights and the momentum as they were before the first.
    judged = 2 + patience
    uncut, halved = before.seen[2], after.seen[judged]
    names = {name for name in uncut if not name.startswith("momentum")}
    weights = {name: uncut[name] for name in names}
    assert same_state({n: halved[n] for n in names}, cut_network(weights, second.plan))
    for name in (n.removeprefix("momentum of ") for n in uncut.keys() - names):
        cut_momentum = cut_network(
            {**{n: uncut[n] for n in names}, name: uncut[f"momentum of {name}"]}, second.plan
        )
        assert torch.equal(halved[f"momentum of {name}"], cut_momentum[name])
    # In between, the network was the one of the first cut.
    assert all(len(seen["net.conv1.weight"]) == 4 for seen in before.seen[3:judged])
    assert same_state(before.seen[judged], uncut)

    rolled_back = "rolled back, to be cut again at half the depth"
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("report.json")}
    assert set(records) == {"cut_after_epoch_1", "cut_after_epoch_1_again"}
    assert records["cut_after_epoch_1"]["verdict"] == {
        "monitor": "quality",
        "before": pytest.approx(0.9),
        "after": pytest.approx(0.5),
        "outcome": rolled_back,
        "allowed": pytest.approx(0.8),
    }
    printed = "\n".join(logged)
    assert (
        "Guard: cut after epoch 1 rolled back, to be cut again at half the depth "
        "(quality 0.9000 -> 0.5000, allowed 0.8000)" in printed
    )
    assert "Cut after epoch 1, again, at half the depth" in printed
    assert "Guard: cut after epoch 1, again, recovered" in printed
    assert "Pruned in one cut" in printed


def test_a_layer_set_that_bears_no_cut_is_left_as_it_was(fit: Fit, logged: list[str]) -> None:
    module, before, after = Scripted(only_whole), Momenta(), Momenta()
    pruning = guarded(1)
    fit(module, [before, pruning, after], max_epochs=6)
    assert widths(module) == WIDTHS
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]
    # Cut at the start of epochs 2 and 3, given up at the start of 4.
    assert same_state(after.seen[4], before.seen[2])
    assert not same_state(before.seen[5], before.seen[2])
    printed = "\n".join(logged)
    assert "again, rolled back, left as it was (quality 0.9000 -> 0.5000, allowed 0.8000)" in printed
    assert "No cut was kept" in printed


def test_after_giving_up_the_next_layers_have_their_turn(fit: Fit) -> None:
    module = Scripted(only_whole)
    pruning = guarded(0, 3, layers_per_epoch=1)
    fit(module, [pruning], max_epochs=7)
    assert [list(step.selections) for step in pruning.steps] == [["net.conv1"]] * 2 + [["net.conv2"]]
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT, Outcome.RECOVERED]
    assert widths(module) == {**WIDTHS, "net.conv2": 3}


def test_only_the_layers_of_an_undone_cut_are_cut_again(fit: Fit) -> None:
    options = {"layers_per_epoch": 1, "selection": SelectionConfig(flops=0.6)}
    pruning = guarded(0, **options)
    fit(Scripted(only_whole), [pruning], max_epochs=4)
    assert [list(step.selections) for step in pruning.steps] == [["net.conv1"]] * 2
    first, second = (step.layers["net.conv1"][1] for step in pruning.steps)
    assert second == 8 - (8 - first) // 2


def test_training_goes_on_as_if_the_cut_had_not_been(fit: Fit) -> None:
    def quality(width: int) -> float:
        return only_whole(width)

    class SameData(pl.Callback):
        """Epochs 1 and 3 of the guarded run see what epoch 1 of the plain one sees."""

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            torch.manual_seed(7)

    module, pruning, plain = Scripted(quality), guarded(0), Scripted(quality)
    before, seen = Momenta(), Momenta()
    fit(module, [pruning, SameData(), before], max_epochs=5)
    fit(plain, [SameData(), seen], max_epochs=5)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]
    # Epochs 1 and 2 were spent on the cuts.
    assert same_state(before.seen[3], seen.seen[1])
    assert same_state(before.seen[4], seen.seen[2])


def test_learning_rates_go_on(fit: Fit) -> None:
    def falling(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    rates = Momenta()
    fit(Scripted(only_whole, configure=falling), [guarded(0), rates], max_epochs=5)
    assert rates.rates == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, torch.optim.LBFGS, torch.optim.Adafactor],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.filterwarnings("ignore:The optimizer's state of")
def test_any_optimizer_goes_back(fit: Fit, optimizer: Any) -> None:
    class States(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            state = trainer.optimizers[0].state_dict()["state"]
            tensors = [v.clone() for s in state.values() for v in s.values() if isinstance(v, Tensor)]
            self.seen.append(tensors)

    before, after = States(), States()
    module = Scripted(only_whole, configure=lambda m: optimizer(m.parameters(), lr=0.01))
    fit(module, [before, guarded(1), after], max_epochs=5)
    assert before.seen[2]
    torch.testing.assert_close(after.seen[4], before.seen[2], rtol=0, atol=0)
    assert widths(module) == WIDTHS


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_averages_go_back_too(fit: Fit, ours_first: bool) -> None:
    class Average(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, Tensor]] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.seen.append(snapshot(ema._average_model.module))

    ema, before, after, pruning = EMAWeightAveraging(decay=0.7), Average(), Average(), guarded(1)
    pair = [pruning, ema] if ours_first else [ema, pruning]
    module = Scripted(only_whole)
    fit(module, [before, *pair, after], max_epochs=6)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]
    assert same_state(after.seen[4], before.seen[2])
    assert widths(module) == WIDTHS


def test_a_metric_that_falls_when_it_gets_better(fit: Fit) -> None:
    module = Scripted(lambda width: 1.0 if width == 8 else 1.05)
    pruning = guarded(0, mode="min")
    fit(module, [pruning], max_epochs=4)
    assert outcomes(pruning) == [Outcome.RECOVERED]
    module, pruning = Scripted(lambda width: 1.0 if width >= 6 else 1.2), guarded(0, mode="min")
    fit(module, [pruning], max_epochs=4)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.RECOVERED]


def test_nan_is_no_recovery(fit: Fit) -> None:
    pruning = guarded(0)
    fit(Scripted(lambda width: 0.9 if width == 8 else torch.nan), [pruning], max_epochs=5)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]


def test_the_last_epoch_judges_but_does_not_cut_again(fit: Fit) -> None:
    module, pruning = Scripted(only_whole), guarded(1)
    probe = Probe()
    fit(module, [pruning, probe], max_epochs=3)
    assert outcomes(pruning) == [Outcome.LEFT]
    assert widths(module) == WIDTHS
    assert same_state(snapshot(module), probe.states["validation_end", 1])


def test_without_room_for_a_second_cut_the_layers_are_left(fit: Fit) -> None:
    pruning = guarded(0, patience=2)
    fit(Scripted(only_whole), [pruning], max_epochs=4)  # judged at 3; a second one needs 3 and 4
    assert outcomes(pruning) == [Outcome.LEFT]


def test_a_fit_that_ends_early_says_that_nothing_was_judged(fit: Fit, logged: list[str]) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    module, pruning = Scripted(only_whole), guarded(0, patience=2)
    with pytest.warns(UserWarning, match="fit ended before the cut after epoch 0 could be judged"):
        fit(module, [pruning, Stop()], max_epochs=6)
    assert outcomes(pruning) == [Outcome.UNJUDGED]
    assert widths(module) == ALL_HALVED
    assert "not judged, since the fit ended before (quality 0.9000 -> ?, allowed 0.8000)" in "\n".join(
        logged
    )


def test_a_fit_that_ends_before_the_second_cut_says_so(
    fit: Fit, logged: list[str], tmp_path: Path
) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    module, pruning = Scripted(only_whole), guarded(0, report_dir=tmp_path)
    said = (
        r"cut after epoch 0 was rolled back, and the fit ended before it could be made again at half "
        r"the depth.* stopped it \(trainer.should_stop; EarlyStopping\?\)"
    )
    with pytest.warns(UserWarning, match=said):
        fit(module, [pruning, Stop()], max_epochs=6)
    assert widths(module) == WIDTHS
    assert outcomes(pruning) == [Outcome.LEFT]
    assert pruning.state_dict()["captured"] is None
    (record,) = tmp_path.rglob("report.json")
    assert json.loads(record.read_text())["verdict"]["outcome"] == Outcome.LEFT
    (table,) = (message for message in logged if "No cut was kept" in message)
    assert all(word in table for word in ("parameters", "FLOPs", "accuracy"))


def test_a_second_cut_that_is_not_judged_is_undone(fit: Fit) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 3

    module, pruning = Scripted(only_whole), guarded(0, patience=2)
    fit(module, [pruning, Stop()], max_epochs=8)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]
    assert widths(module) == WIDTHS


@pytest.mark.parametrize(("steps", "made"), [(16, [Outcome.HALVED, Outcome.LEFT]), (15, [Outcome.LEFT])])
def test_steps_that_are_left_are_counted(fit: Fit, steps: int, made: list[Outcome]) -> None:
    # Four steps an epoch: captured in epoch 0, cut at 4 steps, judged at 8, again at 12.
    pruning = guarded(1)
    fit(Scripted(only_whole), [pruning], max_epochs=-1, max_steps=steps)
    assert outcomes(pruning) == made


def test_too_few_steps_to_judge(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"max_steps=10 .* before 3 epochs of tuning after that epoch"):
        fit(Scripted(only_whole), [guarded(1, patience=3)], max_epochs=-1, max_steps=10)


def test_validations_that_come_every_second_epoch(fit: Fit) -> None:
    options = {"check_val_every_n_epoch": 2}
    pruning = guarded(1)
    fit(Scripted(at_least_six), [pruning], max_epochs=6, **options)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.RECOVERED]
    with pytest.raises(ValueError, match=r"epochs has 1 and 5, .* come from epoch 6"):
        fit(Scripted(at_least_six), [guarded(1, 5)], max_epochs=10, **options)
    with pytest.raises(ValueError, match=r"max_epochs=3 .* takes the validation of epoch 3"):
        fit(Scripted(at_least_six), [guarded(1)], max_epochs=3, **options)


def test_a_value_of_the_uncut_network_proves_nothing(fit: Fit) -> None:
    class Rarely(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            if self.current_epoch % 2 == 0:
                self.log("quality", self.quality(len(self.net.conv1.weight)))

    pruning = guarded(0)
    fit(Rarely(only_whole), [pruning], max_epochs=4)
    assert pruning.steps[0].verdict is not None
    assert (pruning.steps[0].verdict.after, outcomes(pruning)[0]) == (pytest.approx(0.5), Outcome.HALVED)


@pytest.mark.filterwarnings("ignore:forward calls 'teacher' neither")
def test_what_a_module_keeps_out_of_its_state_dict_goes_back_too(fit: Fit) -> None:
    class Partial(Scripted):
        def __init__(self) -> None:
            super().__init__(only_whole)
            self.teacher = nn.Linear(2, 2)
            self.strict_loading = False
            self.register_buffer("history", torch.zeros(0))
            self.register_buffer("batches", torch.zeros(()), persistent=False)

        def state_dict(self, *args: Any, **options: Any) -> Any:
            state = super().state_dict(*args, **options)
            return {name: value for name, value in state.items() if "teacher" not in name}

        def on_train_batch_end(self, *_: Any) -> None:
            self.batches += 1
            self.history = torch.cat([self.history, torch.ones(1)])

    module, pruning = Partial(), guarded(1)
    fit(module, [pruning], max_epochs=6)
    assert outcomes(pruning) == [Outcome.HALVED, Outcome.LEFT]
    assert widths(module) == {**WIDTHS, "teacher": 2}
    # Of six epochs, two were undone.
    assert module.batches == len(module.history) == 4 * 4


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_an_undo_in_the_last_epoch_is_in_the_average_and_the_checkpoint(
    fit: Fit, ours_first: bool, tmp_path: Path
) -> None:
    ema, module, pruning = EMAWeightAveraging(decay=0.7), Scripted(only_whole), guarded(1)
    last = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    pair = [pruning, ema] if ours_first else [ema, pruning]
    fit(module, [*pair, last], max_epochs=3, enable_checkpointing=True)
    assert outcomes(pruning) == [Outcome.LEFT]
    averages = dict(ema._average_model.module.named_parameters())
    assert all(torch.equal(p, averages[name]) for name, p in module.named_parameters())
    saved = torch.load(last.last_model_path, weights_only=True)
    assert len(saved["state_dict"]["net.conv1.weight"]) == 8
    resumed = guarded(1)
    resumed.load_state_dict(saved["callbacks"][resumed.state_key])
    assert outcomes(resumed) == [Outcome.LEFT]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_no_second_cut_in_the_extra_epoch_of_swa(fit: Fit, ours_first: bool) -> None:
    swa, pruning = StochasticWeightAveraging(0.01, swa_epoch_start=1), guarded(1)
    module = Scripted(only_whole)
    fit(module, [pruning, swa] if ours_first else [swa, pruning], max_epochs=3)
    assert outcomes(pruning) == [Outcome.LEFT]
    assert widths(module) == WIDTHS
    averages = dict(swa._average_model.named_parameters())
    assert all(torch.equal(p, averages[name]) for name, p in module.named_parameters())


@pytest.mark.parametrize("other", [{}, {"guard": Guard(0.1, "val_loss", "min")}])
def test_resumed_without_its_guard_a_cut_stays(make_trainer: Fit, tmp_path: Path, other: Any) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"epoch{trainer.current_epoch}.ckpt")

    loaders = (train_loader(), val_loader())
    make_trainer(guarded(1), Save(), max_epochs=5).fit(Scripted(only_whole), *loaders)
    pruning = callback(1, recovery="none", **other)
    module = Scripted(only_whole)
    with pytest.warns(UserWarning, match="a cut waits to be judged by 'quality' .max., but"):
        make_trainer(pruning, max_epochs=5).fit(module, *loaders, ckpt_path=tmp_path / "epoch2.ckpt")
    assert widths(module) == ALL_HALVED
    assert outcomes(pruning) == [None]


def test_two_callbacks_of_which_one_may_undo(fit: Fit) -> None:
    pair = [guarded(1, include=["net.conv1"]), callback(2, include=["net.fc1"])]
    with pytest.raises(ValueError, match="has another ACSPPruningCallback: to roll back a cut of one"):
        fit(Scripted(only_whole), pair, max_epochs=8)


def test_off_by_default(fit: Fit) -> None:
    module, pruning = Scripted(only_whole), callback(0)
    fit(module, [pruning])
    assert widths(module) == ALL_HALVED
    assert outcomes(pruning) == [None]
    assert pruning.state_dict()["trial"] is None


@pytest.mark.parametrize(
    ("sanity", "where", "steps"),
    [(2, "the sanity check", 0), (-1, "the sanity check", 0), (0, "the first validation", 4)],
)
def test_a_metric_that_nobody_logs_is_told_before_the_first_epoch_ends(
    fit: Fit, sanity: int, where: str, steps: int
) -> None:
    module, ends = Classifier(), Probe()
    message = rf"monitor is 'val_acc', not logged in {where}; logged were .*'val_loss'"
    with pytest.raises(ValueError, match=message):
        fit(
            module,
            [ends, callback(1, guard=Guard(0.1))],
            max_epochs=4,
            num_sanity_val_steps=sanity,
        )
    assert module.steps == steps
    assert not ends.names()["train_epoch_end"]


def test_a_first_validation_that_is_captured_tells_as_well(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"'val_acc', not logged in the validation that was captured"):
        fit(Classifier(), [callback(0, guard=Guard(0.1))], max_epochs=4, num_sanity_val_steps=0)


def test_a_sanity_check_that_logs_nothing_tells_nothing(fit: Fit) -> None:
    class Silent(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.trainer.sanity_checking:
                super().validation_step(batch, batch_idx)

    pruning = guarded(0)
    fit(Silent(only_whole), [pruning], max_epochs=3)
    assert len(pruning.steps) >= 1


def test_a_metric_that_says_nothing_before_the_cut(fit: Fit) -> None:
    with pytest.raises(ValueError, match="'quality' is nan in the validation that was captured"):
        fit(Scripted(lambda _: torch.nan), [guarded(0)], max_epochs=4)


@pytest.mark.parametrize(
    ("epochs", "options", "message"),
    [
        ([0], {"max_drop": -0.1}, "max_drop is -0.1; it must be a finite number >= 0"),
        ([0], {"max_drop": True}, "max_drop is True"),
        ([0], {"max_drop": float("inf")}, "max_drop is inf"),
        ([0], {"mode": "best"}, "mode is 'best'; it must be 'max' or 'min'"),
        ([0], {"patience": 0}, "patience is 0; it must be an integer >= 1"),
        ([0], {"monitor": "val_loss"}, "monitor is 'val_loss' with mode='max'.* set mode='min'"),
        ([0, 2], {}, "epochs has 0 and 2, .* come from epoch 3"),
        ([7, 0, 4], {"patience": 2}, "epochs has 0 and 4, .* come from epoch 5"),
    ],
)
def test_bad_arguments(epochs: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACSPPruningCallback(epochs, guard=Guard(**{"max_drop": 0.1, **options}))


def test_a_schedule_that_leaves_no_time_to_judge(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"epochs has 1, but with max_epochs=3 .* patience=2"):
        fit(Scripted(only_whole), [guarded(1, patience=2)], max_epochs=3)
