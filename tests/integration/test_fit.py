"""The main job: capture in one epoch's validation, cut at the start of the next, training goes on."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.fits import (
    ALL_HALVED,
    HALF,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    halved,
    hooks,
    val_loader,
    widths,
)
from lightning.pytorch.callbacks import ModelCheckpoint

from acsp_lightning import ACSPPruningCallback, PruningPlan, SelectionConfig


def flops(module: torch.nn.Module) -> int:
    counter = FlopCountAnalysis(module.eval(), torch.zeros(1, 1, 6, 6))
    return int(counter.unsupported_ops_warnings(False).total())


def test_network_shrinks_and_the_record_agrees_with_it(fit: Fit) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(1)
    before = flops(Classifier()), sum(p.numel() for p in module.parameters())
    trainer = fit(module, [pruning, probe], max_epochs=4)
    assert trainer.current_epoch == 4
    assert widths(module) == ALL_HALVED
    assert module.net.bn1.num_features == module.net.conv2.in_channels == 4
    assert module.net.fc1.in_features == 3 * 9

    (step,) = pruning.steps
    assert step.epoch == 1
    assert step.samples == 18
    assert step.layers == {n: (WIDTHS[n], ALL_HALVED[n]) for n in WIDTHS if n != "net.fc2"}
    assert (step.before.flops, step.before.parameters) == before
    assert step.after.flops == flops(module)
    assert step.after.parameters == sum(p.numel() for p in module.parameters())
    for name, selection in step.selections.items():
        assert selection.k == ALL_HALVED[name]
        assert step.plan.kept(name, "out") == tuple(selection.kept.tolist())
    flat = [c * 9 + p for c in step.selections["net.conv2"].kept.tolist() for p in range(9)]
    assert step.plan.kept("net.fc1", "in") == tuple(flat)


def test_training_goes_on_after_the_cut(fit: Fit) -> None:
    module, probe = Classifier(), Probe()
    fit(module, [callback(), probe])
    after_cut = probe.states["train_epoch_start", 1]
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, after_cut[name]), f"{name} did not move after the cut"
    assert module.steps == 12
    assert all(torch.isfinite(torch.tensor(module.losses)))


@pytest.mark.parametrize("probe_first", [True, False])
def test_the_cut_comes_at_the_start_of_the_next_epoch(fit: Fit, probe_first: bool) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(1)
    fit(module, [probe, pruning] if probe_first else [pruning, probe], max_epochs=4)
    assert probe.names()["sanity_validation_batch_start"] == 2
    place = next(i for i, (*_, found, _) in enumerate(probe.seen) if found != WIDTHS)
    hook, epoch, found, _ = probe.seen[place]
    assert found == ALL_HALVED
    # A probe that comes first at this hook still sees the whole network there.
    assert (hook, epoch) == ("train_batch_start" if probe_first else "train_epoch_start", 2)
    assert all(found == ALL_HALVED for _, _, found, _ in probe.seen[place:])


def test_hooks_are_installed_in_the_chosen_validation_only(fit: Fit) -> None:
    module, probe = Classifier(), Probe()
    fit(module, [callback(1), probe], max_epochs=4)
    hooked = {(hook, epoch) for hook, epoch, _, installed in probe.seen if installed}
    assert hooked == {
        ("validation_start", 1),
        ("validation_batch_start", 1),
        ("validation_batch_end", 1),
    }
    assert hooks(module) == 0


def test_checkpoint_of_the_captured_epoch_holds_the_whole_network(fit: Fit, tmp_path: Path) -> None:
    probe = Probe()
    save = ModelCheckpoint(tmp_path / "files", filename="{epoch}", save_top_k=-1)
    fit(Classifier(), [save, callback(1), probe], max_epochs=4, enable_checkpointing=True)
    for epoch, expected in enumerate([WIDTHS, WIDTHS, ALL_HALVED, ALL_HALVED]):
        checkpoint = torch.load(tmp_path / "files" / f"epoch={epoch}.ckpt", weights_only=True)
        state = checkpoint["state_dict"]
        assert {name: len(state[f"{name}.weight"]) for name in WIDTHS} == expected
        assert all(torch.equal(state[n], t) for n, t in probe.states["validation_end", epoch].items())


@pytest.mark.parametrize("error", [RuntimeError("no luck"), KeyboardInterrupt()])
def test_no_hook_remains_after_an_exception(fit: Fit, error: BaseException) -> None:
    class Failing(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 1 and batch_idx == 1:
                assert hooks(self) > 0
                raise error

    module, pruning = Failing(), callback(1)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError):
        fit(module, [pruning])
    assert hooks(module) == 0
    assert pruning.steps == []
    assert widths(module) == WIDTHS


def test_several_cuts(fit: Fit) -> None:
    module, pruning = Classifier(), callback(0, 2)
    fit(module, [pruning], max_epochs=5)
    first, second = pruning.steps
    assert (first.epoch, second.epoch) == (0, 2)
    assert first.layers["net.conv1"] == (8, 4)
    assert second.layers == {"net.conv1": (4, 2), "net.conv2": (3, 2), "net.fc1": (5, 2)}
    assert widths(module) == {"net.conv1": 2, "net.conv2": 2, "net.fc1": 2, "net.fc2": 3}
    assert first.after == second.before


def test_layer_by_layer_first_to_last(fit: Fit) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(0, 1, 2, layers_per_epoch=1)
    fit(module, [pruning, probe], max_epochs=5)
    assert [list(step.layers) for step in pruning.steps] == [["net.conv1"], ["net.conv2"], ["net.fc1"]]
    assert [list(step.selections) for step in pruning.steps] == [[n] for n in WIDTHS if n != "net.fc2"]
    for epoch, layers in enumerate([(), ("conv1",), ("conv1", "conv2"), ("conv1", "conv2", "fc1")]):
        assert probe.at("train_epoch_start", epoch)[0][0] == halved(*layers)


def test_layer_by_layer_ends_with_a_warning_when_all_were_visited(fit: Fit) -> None:
    pruning = callback(0, 1, 2, layers_per_epoch=2)
    with pytest.warns(UserWarning, match="Every layer was visited before epoch 2; no cut"):
        fit(Classifier(), [pruning], max_epochs=4)
    assert [len(step.layers) for step in pruning.steps] == [2, 1]


def test_accuracies_are_those_of_the_validation_data(fit: Fit) -> None:
    module, probe, pruning = Classifier(), Probe(), callback()
    fit(module, [pruning, probe])

    def accuracy(state: dict[str, torch.Tensor], net: torch.nn.Module) -> float:
        net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
        pairs = [(net.eval()(x).argmax(1) == y).float() for x, y in val_loader()]
        return torch.cat(pairs).mean().item()

    (step,) = pruning.steps
    before = accuracy(probe.states["validation_end", 0], Classifier().net)
    assert step.accuracy_before == pytest.approx(before)
    assert step.accuracy_after == pytest.approx(
        accuracy(probe.states["train_epoch_start", 1], module.net)
    )


def test_the_record_is_written_as_json(fit: Fit, tmp_path: Path) -> None:
    pruning = callback(0, 1, report_dir=tmp_path / "there" / "deep")
    fit(Classifier(), [pruning])
    files = sorted((tmp_path / "there" / "deep").rglob("*"))
    files = [file for file in files if file.is_file()]
    names = [file.relative_to(tmp_path / "there" / "deep").as_posix() for file in files]
    assert names == ["cut_after_epoch_0/report.json", "cut_after_epoch_1/report.json"]
    for file, step in zip(files, pruning.steps, strict=True):
        found = json.loads(file.read_text())
        assert found == json.loads(json.dumps(step.to_dict()))
        assert PruningPlan.from_dict(found["plan"]) == step.plan
        assert found["selections"]["net.conv1"]["kept"] == step.selections["net.conv1"].kept.tolist()
        assert found["after"]["flops"] == step.after.flops


def test_the_record_goes_to_the_trainers_folder_by_default(fit: Fit, tmp_path: Path) -> None:
    fit(Classifier(), [callback()])
    assert (tmp_path / "acsp" / "cut_after_epoch_0" / "report.json").is_file()


def test_the_record_goes_to_the_loggers_folder(fit: Fit, tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path, name="run", version="one")
    fit(Classifier(), [callback()], logger=logger, log_every_n_steps=1)
    assert (tmp_path / "run" / "one" / "acsp" / "cut_after_epoch_0" / "report.json").is_file()


def test_a_folder_that_cannot_be_written_costs_a_warning_only(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    module, pruning = Classifier(), callback(report_dir=tmp_path / "taken")
    with pytest.warns(UserWarning, match=r"report of the cut could not be written to .*taken"):
        fit(module, [pruning])
    assert len(pruning.steps) == 1
    assert module.steps == 12


def test_one_line_for_each_cut_and_a_table_at_the_end(
    fit: Fit, logged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Classifier(), [callback(0, 1)])
    lines = [message for message in logged if message.startswith("Cut after")]
    assert [line.partition(":")[0] for line in lines] == ["Cut after epoch 0", "Cut after epoch 1"]
    assert not any("\n" in line for line in lines)
    (table,) = [message for message in logged if "Pruned in 2 cuts" in message]
    assert "net.conv1" in table
    assert capsys.readouterr().out == ""


def test_a_callback_serves_a_second_fit(fit: Fit) -> None:
    module, pruning = Classifier(), callback()
    fit(module, [pruning], max_epochs=2)
    first = pruning.steps
    fit(module, [pruning], max_epochs=2)
    assert [step.epoch for step in [*first, *pruning.steps]] == [0, 0]
    assert first[0].after == pruning.steps[0].before
    assert widths(module)["net.conv1"] == 2


def test_a_second_fit_of_another_network_starts_afresh(fit: Fit, logged: list[str]) -> None:
    """Layers visited, the FLOPs target and the summary are those of the network at hand."""
    layers = torch.nn.Flatten(), torch.nn.Linear(36, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)
    pruning = callback(0, layers_per_epoch=1, selection=SelectionConfig(flops=0.5))
    fit(Classifier(), [pruning])
    logged.clear()
    module = Classifier(torch.nn.Sequential(*layers))
    fit(module, [pruning])
    printed = "\n".join(logged)
    assert widths(module) == {"net.1": 6, "net.3": 3}
    assert [list(step.layers) for step in pruning.steps] == [["net.1"]]
    assert "Pruned in one cut" in printed
    assert "net.conv1" not in printed


def test_a_capture_left_over_does_not_cut_in_the_next_fit(fit: Fit) -> None:
    """A fit that stops between capture and cut must leave nothing behind for the next one."""
    first, second, pruning = Classifier(), Classifier(), callback(0)
    probe = Probe()
    with pytest.warns(UserWarning, match="No cut was made after epoch 0"):
        fit(first, [pruning, pl.callbacks.EarlyStopping("val_loss", stopping_threshold=1e9)])
    assert widths(first) == WIDTHS
    fit(second, [pruning, probe])
    assert probe.at("train_epoch_start", 0)[0][0] == WIDTHS
    assert probe.at("train_epoch_start", 1)[0][0] == ALL_HALVED


def test_defaults_of_the_constructor() -> None:
    pruning = ACSPPruningCallback([4])
    assert pruning.epochs == (4,)
    assert pruning.recovery == "least_squares"
    assert pruning.selection != HALF
