"""What is taught and what is not; what the teacher cannot work with, and how that is said."""

import threading
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Fit, callback, same_state, snapshot, train_loader, val_loader
from helpers.lessons import HandTaught, Pupil
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import Distillation

# -- which losses are taught ---------------------------------------------------------------------------


class Separate(Pupil):
    """A parameter outside the network has an optimizer and a loss of its own, which comes first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(manual=True, **options)
        self.centre = nn.Parameter(torch.ones(3))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), 0.05), torch.optim.SGD([self.centre], 0.1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        network, centre = cast(Any, self.optimizers())
        logits = self(batch[0])
        for optimizer, loss in (
            (centre, (self.centre - logits.detach().mean(0)).square().sum()),
            (network, self.loss(functional.cross_entropy(logits, batch[1]), logits, batch[0])),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


class SeparateByHand(Separate, HandTaught): ...


class TwoCalls(Pupil):
    """Two calls, whose losses go backward one by one: the last call alone is taught."""

    def __init__(self, **options: Any) -> None:
        super().__init__(manual=True, **options)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        images, labels = batch
        first, last = self(images + 1), self(images)
        self.manual_backward(functional.cross_entropy(first, labels))
        self.manual_backward(self.loss(functional.cross_entropy(last, labels), last, images))
        optimizer.step()


class TwoCallsByHand(TwoCalls, HandTaught): ...


class TwoLosses(TwoCalls):
    """One call with two losses that go backward one by one: the first is taught."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        images, labels = batch
        logits = self(images)
        own = functional.cross_entropy(logits, labels)
        self.manual_backward(self.loss(own, logits, images), retain_graph=True)
        self.manual_backward(0.1 * logits.square().mean())
        optimizer.step()


class TwoLossesByHand(TwoLosses, HandTaught): ...


class TriesAgain(Pupil):
    """Its forward raises now and then, and is called again."""

    failing = True

    def forward(self, images: Any) -> Any:
        logits = self.net(images)
        if self.failing and torch.is_grad_enabled() and self.training:
            raise MemoryError
        return logits

    def predict(self, images: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, self(images))
        self.failing = True
        try:
            return cast(Tensor, self(images))
        except MemoryError:
            self.failing = False
        return cast(Tensor, self(images))


class TriesAgainByHand(TriesAgain, HandTaught): ...


class NowAndThen(Pupil):
    """Every other step has a loss that knows nothing of the network's outputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx % 2 == 0:
            return self.net.fc2.weight.square().sum()
        return super().training_step(batch, batch_idx)


class NowAndThenByHand(NowAndThen, HandTaught): ...


class NowAndThenNoScores(Pupil):
    """Its forward returns no class scores in every other step."""

    wordless = False

    def forward(self, images: Any) -> Any:
        logits = self.net(images)
        return {"maps": logits} if self.wordless else logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.wordless = batch_idx % 2 == 0
        try:
            if self.wordless:
                return functional.cross_entropy(self(batch[0])["maps"], batch[1])
            return super().training_step(batch, batch_idx)
        finally:
            self.wordless = False


class NowAndThenNoScoresByHand(NowAndThenNoScores, HandTaught): ...


TAUGHT = (
    (Separate, SeparateByHand),
    (TwoCalls, TwoCallsByHand),
    (TwoLosses, TwoLossesByHand),
    (TriesAgain, TriesAgainByHand),
    (NowAndThen, NowAndThenByHand),
    (NowAndThenNoScores, NowAndThenNoScoresByHand),
)


@pytest.mark.parametrize(("kind", "by_hand"), TAUGHT)
def test_losses_of_the_last_call_are_taught_and_no_others(fit: Fit, kind: Any, by_hand: Any) -> None:
    expected, found = by_hand(), kind()
    fit(expected, [callback()])
    fit(found, [callback(distillation=Distillation())])
    assert same_state(snapshot(found), snapshot(expected))
    assert found.taught[-1] == expected.taught[-1] > 0


# -- who hears the teacher -----------------------------------------------------------------------------


class Logs(Pupil):
    """Logs in forward what it returns, during training steps."""

    stepping: ClassVar[list[bool]] = [False]  # so that a copy asks the same

    def __init__(self) -> None:
        super().__init__()
        self.means: list[Tensor] = []
        self.largest: list[Tensor] = []

    def forward(self, images: Any) -> Any:
        logits = self.net(images)
        if self.stepping[0]:
            self.log("mean", logits.mean())
            self.log_dict({"largest": logits.max()})
        return logits

    def predict(self, images: Tensor) -> Tensor:
        self.stepping[0] = self.training
        logits: Tensor = self(images)
        if self.training:
            self.means.append(logits.detach().mean())
            self.largest.append(logits.detach().max())
        return logits

    def on_train_batch_end(self, *_: Any) -> None:
        self.stepping[0] = False
        assert self.trainer.callback_metrics["mean"] == self.means[-1]
        super().on_train_batch_end()


def test_what_forward_logs_is_of_the_network(fit: Fit) -> None:
    module = Logs()
    trainer = fit(module, [callback(distillation=Distillation())])
    assert trainer.callback_metrics["mean"] == module.means[-1]
    assert trainer.callback_metrics["largest"] == module.largest[-1]
    assert all(distance > 0 for distance in module.taught[4:])


def test_hooks_that_listen_hear_the_network_alone(fit: Fit) -> None:
    calls = [0, 0]

    def listen(place: int) -> Any:
        def note(*_: Any) -> None:
            calls[place] += 1

        return note

    class Noting(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            calls[:] = [0, 0]

        def on_train_batch_end(self, *_: Any) -> None:
            assert calls == [1, 1]

    module = Pupil()
    module.net.conv1.register_forward_hook(listen(0))
    module.register_forward_pre_hook(listen(1))
    fit(module, [callback(distillation=Distillation()), Noting()])
    assert all(distance > 0 for distance in module.taught[4:])


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_backward_of_the_module_comes_back(fit: Fit, kind: type[BaseException]) -> None:
    """Where another callback raises between the hook and the backward pass."""

    class Raising(pl.Callback):
        steps = 0

        def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            self.steps += 1
            if self.steps == 6:
                assert "backward" in vars(module)
                raise kind

    module = Pupil()
    with pytest.raises(ValueError if kind is ValueError else SystemExit):
        fit(module, [callback(distillation=Distillation()), Raising()])
    assert "backward" not in vars(module)


# -- what is refused before the first epoch ------------------------------------------------------------


def test_another_callback_that_cuts_is_refused(fit: Fit) -> None:
    module = Pupil()
    one, other = callback(include=["net.conv1"]), callback(1, distillation=Distillation())
    with pytest.raises(ValueError, match="distillation is set, and the Trainer has another ACSP"):
        fit(module, [one, other])
    assert module.logged == []


def test_a_network_that_cannot_be_copied_is_refused(fit: Fit, make_trainer: Fit) -> None:
    class Locked(Pupil):
        def __init__(self) -> None:
            super().__init__()
            self.net.relu1.lock = threading.Lock()

    module = Locked()
    with pytest.raises(TypeError, match=r"'net\.relu1\.lock' \(lock\) cannot be copied"):
        fit(module, [callback(distillation=Distillation())])
    assert module.logged == []
    # Who has no teacher needs no copy.
    trainer = make_trainer(callback())
    trainer.fit(module, train_loader(), val_loader())
    assert len(module.logged) == 12


# -- where it cannot teach -----------------------------------------------------------------------------


class Maps(Pupil):
    """Returns no class scores."""

    def forward(self, images: Any) -> Any:
        return {"maps": self.net(images)}

    def predict(self, images: Tensor) -> Tensor:
        return cast(Tensor, self(images)["maps"])


class Probabilities(Pupil):
    def forward(self, images: Any) -> Any:
        return self.net(images).softmax(1)


class InEvalAlone(Pupil):
    """Returns class scores where it is looked at, and something else in training."""

    def forward(self, images: Any) -> Any:
        logits = self.net(images)
        return (logits, images) if self.training else logits

    def predict(self, images: Tensor) -> Tensor:
        found = self(images)
        return cast(Tensor, found[0] if self.training else found)


class LayerByLayer(Pupil):
    def predict(self, images: Tensor) -> Tensor:
        for layer in self.net.children():
            images = layer(images)
        return images


class Bare(Pupil):
    """Goes backward past Lightning."""

    def __init__(self) -> None:
        super().__init__(manual=True)

    def manual_backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        loss.backward()


NO_SCORES = "returns no logits of classes"
NO_CALL = r"depend on what self\(...\) or self.net\(...\) returned last in training_step"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Maps, NO_SCORES),
        (Probabilities, NO_SCORES),
        (InEvalAlone, NO_SCORES),
        (LayerByLayer, NO_CALL),
        (Bare, NO_CALL),
    ],
)
def test_one_warning_and_training_goes_on(fit: Fit, kind: Any, said: str) -> None:
    found, alone = kind(), kind()
    with pytest.warns(UserWarning, match=said) as caught:
        fit(found, [callback(0, 1, distillation=Distillation())], max_epochs=4)
    assert len([w for w in caught if "distillation" in str(w.message)]) == 1
    fit(alone, [callback(0, 1)], max_epochs=4)
    assert same_state(snapshot(found), snapshot(alone))
    assert found.taught == [0.0] * 16


def test_an_epoch_in_which_nothing_is_taught_does_not_end_the_teaching(fit: Fit) -> None:
    class Later(Pupil):
        def predict(self, images: Tensor) -> Tensor:
            if self.current_epoch == 1:
                return cast(Tensor, LayerByLayer.predict(cast(Any, self), images))
            return super().predict(images)

    class LaterByHand(Later, HandTaught):
        def loss(self, own: Tensor, logits: Tensor, images: Tensor) -> Tensor:
            return own if self.current_epoch == 1 else super().loss(own, logits, images)

    expected, found = LaterByHand(), Later()
    fit(expected, [callback()], max_epochs=4)
    with pytest.warns(UserWarning, match=NO_CALL):
        fit(found, [callback(distillation=Distillation())], max_epochs=4)
    assert same_state(snapshot(found), snapshot(expected))
    assert found.taught[8:] == expected.taught[8:]
    assert all(distance > 0 for distance in found.taught[8:])
