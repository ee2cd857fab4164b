import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.captured import captured
from helpers.fits import conv_net
from helpers.records import complexity, step, viewed

from acsp_lightning.capture.statistics import Captured
from acsp_lightning.trainer.copies import CopyRecord
from acsp_lightning.trainer.guard import Trial
from acsp_lightning.trainer.snapshot import take_snapshot
from acsp_lightning.trainer.state import CallbackState


def state() -> CallbackState:
    """Of a callback that has cut, captured again, and waits for a verdict."""
    model = conv_net()
    groups, activations = captured(model)
    waiting = Captured(3, tuple(groups.values()), activations, metric=0.5)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 1, 6, 6)).sum().backward()
    optimizer.step()
    trial = Trial("val_acc", "max", waiting, take_snapshot(model, (), [optimizer]), 0.5, due=4)
    copies = (CopyRecord("Holder.held", "net.", False, True, True, False),)
    return CallbackState(
        [step(0), viewed()], ["conv"], complexity(6000, 60_000), waiting, trial, copies=copies
    )


def leaves(value: Any) -> list[Any]:
    """All values in nested data, in a fixed order."""
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *leaves(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def test_a_state_goes_through_a_checkpoint_that_loads_without_code() -> None:
    before, file = state(), io.BytesIO()
    torch.save(before.to_dict(), file)
    file.seek(0)
    after = CallbackState.from_dict(torch.load(file, weights_only=True))
    found, expected = leaves(after), leaves(before)
    assert len(found) == len(expected) > 200
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert type(a) is type(b)
            assert a == b


def test_an_empty_state() -> None:
    nothing = CallbackState([], [], None, None, None)
    assert CallbackState.from_dict(nothing.to_dict()) == nothing


def test_a_state_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    data = state().to_dict()
    with pytest.raises(ValueError, match=r"cannot be read: .*load_pruned"):
        CallbackState.from_dict({**data, "format": 0})
    del data["visited"]
    with pytest.raises(ValueError, match="cannot be read: CallbackState has the fields"):
        CallbackState.from_dict(data)


def test_a_state_from_before_copies_were_kept_still_loads() -> None:
    data = state().to_dict()
    del data["copies"]
    assert tuple(CallbackState.from_dict(data).copies) == ()
