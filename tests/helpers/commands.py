"""The command line, called as a function."""

from pathlib import Path

import pytest

from acsp_lightning.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = RECIPES / "digits_vgg.yaml"
SHORT = [
    "--trainer.callbacks=null",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.log_every_n_steps=1",
]


def run(*words: object) -> None:
    main([*map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2
    return capsys.readouterr().err
