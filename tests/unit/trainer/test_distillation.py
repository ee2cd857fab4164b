"""One training step after another, without a Trainer: what is taught, and what is put back."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.captured import IMAGES
from helpers.fits import Classifier, callback, conv_net, hooks
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import Distillation
from acsp_lightning.trainer.distillation import Teaching
from acsp_lightning.trainer.uncut import Uncut

LABELS = torch.arange(len(IMAGES)) % 3


class Student(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[float] = []
        self.noted: dict[str, float] = {}

    def log(self, name: str, value: Any, **_: Any) -> None:  # type: ignore[override]
        self.noted[name] = float(value)

    def backward(self, loss: Tensor, *arguments: Any, **keywords: Any) -> None:
        self.given.append(loss.item())
        super().backward(loss, *arguments, **keywords)

    def own(self) -> Tensor:
        return functional.cross_entropy(self(IMAGES), LABELS)


def begun(weight: float = 0.5) -> tuple[Any, Teaching, Student]:
    """A teacher that is the student as it was, before that took other weights."""
    module = Student().eval()
    trainer = SimpleNamespace(
        lightning_module=module,
        callbacks=[],
        strategy=SimpleNamespace(model=module),
        precision_plugin=pl.plugins.Precision(),
        accumulate_grad_batches=1,
        checkpoint_callback=None,
    )
    teaching = Teaching(Distillation(weight, temperature=2.0), None)
    survey: Any = SimpleNamespace(example=SimpleNamespace(traced=(IMAGES,)), num_classes=3)
    teaching.begin(trainer, survey)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    teaching.before_batch(trainer)  # type: ignore[arg-type]
    return trainer, teaching, module


def test_the_gradients_are_those_of_the_blended_loss() -> None:
    trainer, teaching, module = begun()
    loss = module.own()
    teaching.before_backward(trainer, loss)
    module.backward(loss)
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    with torch.no_grad():
        wanted = (conv_net().eval()(IMAGES) / 2).softmax(1)
    logits = module.net(IMAGES)
    distance = 4 * (wanted * (wanted.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    (0.5 * functional.cross_entropy(logits, LABELS) + 0.5 * distance).backward()
    expected = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 5
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert module.noted == {"acsp/distillation_loss": pytest.approx(distance.item())}


def test_a_pass_that_was_to_be_taught_and_never_began_leaves_nothing() -> None:
    """Neither to the next pass, nor to the next batch, nor to the end."""
    nothing: Callable[..., None] = lambda trainer, teaching, module: None  # noqa: E731
    for way in (
        lambda trainer, teaching, module: teaching.before_backward(trainer, module.net.fc2.bias.sum()),
        lambda trainer, teaching, module: teaching.after_batch(),
        lambda trainer, teaching, module: teaching.forget(),
        nothing,
    ):
        trainer, teaching, module = begun()
        teaching.before_backward(trainer, module.own())
        assert "backward" in vars(module)
        way(trainer, teaching, module)
        assert ("backward" in vars(module)) == (way is nothing)
        teaching.forget()
        assert "backward" not in vars(module)
        assert hooks(module) == 0
        plain = module.own()
        module.backward(plain)
        assert module.given == [plain.item()]


def test_a_backward_that_belongs_to_the_object_is_used_and_comes_back() -> None:
    trainer, teaching, module = begun()
    seen: list[float] = []

    def own(loss: Tensor, *arguments: Any, **keywords: Any) -> None:
        seen.append(loss.item())
        loss.backward()

    vars(module)["backward"] = own
    loss = module.own()
    teaching.before_backward(trainer, loss)
    module.backward(loss)
    assert vars(module)["backward"] is own
    blended = 0.5 * loss.item() + 0.5 * module.noted["acsp/distillation_loss"]
    assert seen == [pytest.approx(blended)]


def test_a_backward_pass_that_raises_is_over() -> None:
    trainer, teaching, module = begun()
    loss = module.own()
    loss.register_hook(lambda gradient: 1 / 0)
    teaching.before_backward(trainer, loss)
    with pytest.raises(ZeroDivisionError):
        module.backward(loss)
    assert "backward" not in vars(module)
    again = module.own()
    teaching.before_backward(trainer, again)
    module.backward(again)
    assert module.given[-1] != again.item()


def test_the_first_network_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    files = iter([Uncut("first", "1"), Uncut("second", "2")])
    monkeypatch.setattr(
        "acsp_lightning.trainer.distillation.save_uncut", lambda trainer, epoch: next(files)
    )
    trainer: Any = None
    teaching = Teaching(None, None)
    teaching.keep(trainer, 0, is_first=True)
    teaching.keep(trainer, 2, is_first=False)
    assert teaching.state() == Uncut("first", "1")


def test_a_checkpoint_that_no_teacher_will_be_found_for_is_warned_of_once() -> None:
    _, teaching, _ = begun()
    with pytest.warns(UserWarning, match="the uncut network is in no file"):
        assert teaching.state() is None
    assert teaching.state() is None  # warnings are errors
    teaching.uncut = Uncut("here", "1")
    assert teaching.state() == teaching.uncut
    assert Teaching(Distillation(), None).state() is None  # before the first cut
    assert Teaching(None, None).state() is None


def test_what_cannot_teach_is_refused_by_those_who_have_a_teacher() -> None:
    module: Any = Classifier(nn.Sequential(nn.Linear(1, 1)))
    module.stream = (n for n in range(3))
    one, other = callback(), callback(1)
    trainer: Any = SimpleNamespace(lightning_module=module, callbacks=[one])
    Teaching(None, None).check(one, trainer)
    teaching = Teaching(Distillation(), None)
    with pytest.raises(TypeError, match="'stream'"):
        teaching.check(one, trainer)
    del module.stream
    teaching.check(one, trainer)
    trainer.callbacks.append(other)
    with pytest.raises(ValueError, match="another ACSPPruningCallback"):
        teaching.check(one, trainer)
    Teaching(None, None).check(one, trainer)
