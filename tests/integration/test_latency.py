"""Cuts that are timed in a fit."""

import dataclasses
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import WIDTHS, Classifier, Fit, callback, same_state, snapshot, widths
from torch import nn

import acsp_lightning.pipeline
from acsp_lightning import ACSPPruningCallback, LatencyComparison, compare_latency
from acsp_lightning.report import PruningStep
from acsp_lightning.serialization import decode, encode

BRIEF: dict[str, Any] = {"min_runs": 3, "min_seconds": 0}


@pytest.fixture
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acsp_lightning.pipeline, "compare_latency", partial(compare_latency, **BRIEF))


@pytest.fixture
def timed(_brief: None, fit: Fit) -> PruningStep:
    """The cut of a fit that times it."""
    pruning = callback(latency_batch_sizes=[1, 4])
    fit(Classifier(), [pruning], max_epochs=2)
    return pruning.steps[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [(0, "latency_batch_sizes is 0; it must be a list"), ([1, 0], "latency_batch_sizes has 0; it must")],
)
def test_arguments_of_the_callback(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACSPPruningCallback([1], latency_batch_sizes=sizes)


@pytest.mark.usefixtures("_brief")
def test_a_fit_that_is_timed_is_the_same_fit(fit: Fit, tmp_path: Path, logged: list[str]) -> None:
    plain, plain_callback = Classifier(), callback(0, 1, layers_per_epoch=1)
    fit(plain, [plain_callback])
    assert "latency" not in "\n".join(logged)
    assert [step.latency for step in plain_callback.steps] == [(), ()]
    module = Classifier()
    pruning = callback(0, 1, layers_per_epoch=1, latency_batch_sizes=[1, 4], report_dir=tmp_path)
    fit(module, [pruning])
    assert same_state(snapshot(module), snapshot(plain))
    assert module.losses == plain.losses
    for step, expected in zip(pruning.steps, plain_callback.steps, strict=True):
        assert step.plan == expected.plan
        assert [(c.before.batch_size, c.after.batch_size) for c in step.latency] == [(1, 1), (4, 4)]
        assert all(c.before.median > 0 and c.after.median > 0 for c in step.latency)
        record = json.loads((tmp_path / f"cut_after_epoch_{step.epoch}" / "report.json").read_text())
        assert record["latency"] == json.loads(
            json.dumps([dataclasses.asdict(found) for found in step.latency])
        )
    printed = "\n".join(logged)
    assert printed.count("ms for a batch of 1") == 2
    assert printed.count("ms for a batch of 4") == 2


def test_the_networks_that_are_compared(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(before: nn.Module, after: nn.Module, *arguments: Any) -> tuple[LatencyComparison, ...]:
        seen.append((widths(before), after, *arguments))
        return ()

    monkeypatch.setattr(acsp_lightning.pipeline, "compare_latency", compare)
    module = Classifier()
    fit(module, [callback(latency_batch_sizes=[8])], max_epochs=2)
    ((before, after, (example,), sizes),) = seen
    assert before == WIDTHS
    assert after is module
    assert example.shape == (1, 1, 6, 6)
    assert sizes == (8,)


@pytest.mark.usefixtures("_brief")
def test_steps_with_and_without_latency_survive_a_checkpoint(
    fit: Fit, make_trainer: Fit, timed: PruningStep, tmp_path: Path
) -> None:
    pruning = callback(0, 1, layers_per_epoch=1)
    trainer = fit(Classifier(), [pruning])
    pruning.steps.insert(0, timed)
    trainer.save_checkpoint(tmp_path / "steps.ckpt")
    (state,) = torch.load(tmp_path / "steps.ckpt", weights_only=True)["callbacks"].values()
    fresh = callback(0, 1, layers_per_epoch=1)
    fresh.load_state_dict(state)
    assert [step.latency for step in fresh.steps] == [timed.latency, (), ()]


def test_a_step_of_before_there_was_latency(timed: PruningStep) -> None:
    plain = encode(timed)
    del plain["latency"]
    assert decode(PruningStep, plain).latency == ()


@pytest.mark.parametrize("failure", ["copy", "timing"])
def test_what_cannot_be_timed_is_cut_all_the_same(
    fit: Fit, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    module, pruning = Classifier(), callback(latency_batch_sizes=[1])
    if failure == "copy":
        module.lock = threading.Lock()
    else:
        monkeypatch.setattr(acsp_lightning.pipeline, "compare_latency", fail)
    message = "'lock'" if failure == "copy" else "out of memory"
    with pytest.warns(UserWarning, match=rf"latency .* could not be measured \(.*{message}"):
        fit(module, [pruning])
    assert pruning.steps[0].latency == ()
    assert widths(module)["net.conv1"] == 4
    assert module.steps == 12
