"""When a cut can come, against counting batches one by one."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Classifier, callback
from torch import nn

from acsp_lightning.trainer import checks


def trainer(**options: Any) -> Any:
    usual = {
        "callbacks": [],
        "enable_validation": True,
        "max_epochs": 10,
        "check_val_every_n_epoch": 1,
        "num_training_batches": 4,
        "accumulate_grad_batches": 1,
        "max_steps": -1,
        "val_check_batch": 4,
        "val_check_interval": 1.0,
        "lightning_module": SimpleNamespace(automatic_optimization=True),
    }
    return SimpleNamespace(**{**usual, **options})


def refuses(check: Any, *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("max_epochs", [1, 2, 5, -1, None])
@pytest.mark.parametrize("every", [1, 2, 3, None])
def test_epochs_without_a_validation_or_a_next_epoch(max_epochs: int | None, every: int | None) -> None:
    for epoch in range(8):
        validated = every is None or epoch in range(every - 1, 100, every)
        followed = max_epochs in (None, -1) or epoch + 1 in range(max_epochs)
        options = {"max_epochs": max_epochs, "check_val_every_n_epoch": every}
        message = refuses(checks.check_schedule, [epoch], trainer(**options))
        assert (message is None) == (validated and followed), (epoch, message)
        assert message is None or f"epochs has {epoch}" in message


def test_a_fit_without_validation() -> None:
    message = refuses(checks.check_schedule, [0], trainer(enable_validation=False))
    assert message is not None
    assert "validation_step" in message


@pytest.mark.parametrize("length", [3, 4, 7])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("max_steps", [-1, 5, 8])
@pytest.mark.parametrize("tuned", [0, 1])
def test_steps_that_end_before_the_cut(length: int, accumulate: int, max_steps: int, tuned: int) -> None:
    for epoch in range(4):
        # One step more than so many epochs of training, or as many as all epochs of tuning take.
        batches = [i for _ in range(epoch + 1 + tuned) for i in range(1, length + 1)]
        steps = sum(i % accumulate == 0 or i == length for i in batches)
        possible = max_steps == -1 or (steps <= max_steps if tuned else steps < max_steps)
        fit = trainer(
            num_training_batches=length, accumulate_grad_batches=accumulate, max_steps=max_steps
        )
        message = refuses(checks.check_step_schedule, [epoch], fit, tuned)
        assert (message is None) == possible, (epoch, message)


@pytest.mark.parametrize("length", [3, 4, 7])
@pytest.mark.parametrize("every", [2, 5, 9])
def test_validations_that_count_batches_through_all_epochs(length: int, every: int) -> None:
    for epoch in range(8):
        batches = range(epoch * length + 1, (epoch + 1) * length + 1)
        validated = any(batch % every == 0 for batch in batches)
        fit = trainer(
            num_training_batches=length, check_val_every_n_epoch=None, val_check_batch=every,
            val_check_interval=every,
        )  # fmt: skip
        assert (refuses(checks.check_step_schedule, [epoch], fit) is None) == validated, epoch


def test_what_cannot_be_counted_is_not_refused() -> None:
    manual = SimpleNamespace(automatic_optimization=False)
    for options in (
        {"num_training_batches": float("inf"), "max_steps": 1},
        {"lightning_module": manual, "max_steps": 1},
    ):
        assert refuses(checks.check_step_schedule, [3], trainer(**options)) is None


def test_trainers_of_other_kinds() -> None:
    checks.check_trainer(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    with pytest.raises(TypeError, match=r"types\.SimpleNamespace"):
        checks.check_trainer(trainer())


def test_an_option_for_a_single_callback() -> None:
    first, second = callback(), callback(1)
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    checks.check_alone(first, pl.Trainer(callbacks=[first], **quiet), "guard", "it is so")
    both = pl.Trainer(callbacks=[first, second], **quiet)
    message = refuses(checks.check_alone, first, both, "guard", "it is so")
    assert message is not None
    assert message.startswith("guard is set, and the Trainer has another ACSPPruningCallback: it is so.")
    assert "set guard to None" in message


def test_a_network_that_is_all_frozen() -> None:
    module = Classifier()
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        checks.check_trainable(module)
    module.net.fc2.bias.requires_grad_(True)
    checks.check_trainable(module)


def test_shapes_of_parameters_that_are_yet_to_be_made() -> None:
    module: Any = Classifier(nn.Sequential(nn.LazyLinear(4, bias=False), nn.Linear(4, 3, bias=False)))
    assert checks.parameter_shapes(module) == {"net.0.weight": None, "net.1.weight": (3, 4)}
    module.net(torch.ones(1, 2))
    assert checks.parameter_shapes(module)["net.0.weight"] == (4, 2)


def test_a_dry_run_is_recognised() -> None:
    for dry in (True, False):
        fit = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, fast_dev_run=dry,
            enable_progress_bar=False,
        )  # fmt: skip
        assert checks.is_fast_dev_run(fit) is dry


def test_callbacks_are_those_of_the_trainer() -> None:
    own = callback()
    fit = pl.Trainer(callbacks=[own], accelerator="cpu", logger=False, enable_checkpointing=False)
    assert own in checks.callbacks_of(fit)
