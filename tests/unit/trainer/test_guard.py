"""What the guard accepts, without a fit."""

from acsp_lightning import Guard
from acsp_lightning.trainer.guard import accepts


def test_the_limit_itself_is_allowed() -> None:
    assert accepts(Guard(0.25, "acc"), 0.75, 0.5)
    assert not accepts(Guard(0.25, "acc"), 0.75, 0.49)
    assert accepts(Guard(0.0, "loss", "min"), 0.5, 0.5)
    assert not accepts(Guard(0.0, "loss", "min"), 0.5, 0.51)
