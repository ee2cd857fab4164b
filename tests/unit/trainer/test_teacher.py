"""Which modules stand for the network, and what a teacher keeps from others."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.captured import IMAGES
from helpers.fits import Classifier, conv_net, hooks, same_state, snapshot
from helpers.outputs import second
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from acsp_lightning.capture.calls import Call
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.trainer.teacher import Teacher, drop_listeners, scoring_modules

# -- which modules may be taught -----------------------------------------------------------------------


class Pairs(Classifier):
    def forward(self, images: Any) -> Any:
        return images, self.net(images)


class Scaled(Classifier):
    def forward(self, images: Any) -> Any:
        return 2 * self.net(images)


class Normalized(Classifier):
    """Its network is not all of it: a layer with parameters comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Any) -> Any:
        return self.net(self.norm(images))


class Softmax(Classifier):
    def forward(self, images: Any) -> Any:
        return self.net(images).softmax(1)


class Embedding(Classifier):
    def forward(self, images: Any) -> Any:
        return self.net(images)[..., None]


class RootBuffer(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(1))

    def forward(self, images: Any) -> Any:
        return self.net(images - self.mean)


class RootParameter(Classifier):
    """Which forward does not use, as that of a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.ones(1))


class Scale(RootParameter):
    """What comes before its network learns, though it is no layer."""

    def forward(self, images: Any) -> Any:
        return self.net(images * self.margin)


class Gained(nn.Module):
    """Has a parameter itself, and layers; to stand in a network as ``net``."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain = conv_net(), nn.Parameter(torch.ones(1))

    def forward(self, images: Any) -> Any:
        return self.body(images * self.gain)


class FrozenBody(Classifier):
    """The last layer gets what has no history, and yet is made by layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = self.net[:-1], self.net[-1]

    def forward(self, images: Any) -> Any:
        with torch.no_grad():
            features = self.body(images)
        return self.head(features)


class Constant(Classifier):
    """A part without parameters comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, images: Any) -> Any:
        return self.net(self.norm(images))


class Auxiliary(Classifier):
    """Another head runs after the network, on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(36, 3)

    def forward(self, images: Any) -> Any:
        return {"logits": self.net(images), "more": self.auxiliary(images.flatten(1))}


def own_gain() -> Classifier:
    return Classifier(Gained())


@pytest.mark.parametrize(
    ("kind", "reader", "expected"),
    [
        (Classifier, None, {"": None, "net": None}),
        (Pairs, second, {"": second, "net": None}),
        (Pairs, None, {}),
        (Scaled, None, {"": None}),
        (Normalized, None, {"": None}),
        (Softmax, None, {}),
        (Embedding, None, {}),
        (RootBuffer, None, {"": None, "net": None}),
        (RootParameter, None, {"": None, "net": None}),
        (Scale, None, {"": None}),
        (own_gain, None, {"": None, "net": None}),
        (FrozenBody, None, {"": None}),
        (Constant, None, {"": None, "net": None}),
        (Auxiliary, None, {"": None, "net": None}),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_modules_that_stand_for_the_network(
    kind: Any, reader: Any, expected: dict[str, Any], frozen: bool
) -> None:
    """Not the last layer, whose inputs a cut makes narrower."""
    module = kind().requires_grad_(not frozen)
    before, flags = snapshot(module), [m.training for m in module.modules()]
    found = scoring_modules(module, (IMAGES,), reader, largest=2)
    assert list(found.items()) == list(expected.items())  # from the outside in
    assert same_state(snapshot(module), before)
    assert [m.training for m in module.modules()] == flags
    assert all(p.requires_grad != frozen for p in module.parameters())
    assert hooks(module) == 0


def test_a_single_logit_stands_for_two_classes() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(1))
    net(IMAGES)
    assert scoring_modules(net, (IMAGES,), None, largest=1) == {"": None}
    assert scoring_modules(net, (IMAGES,), None, largest=2) == {}


# -- hooks ---------------------------------------------------------------------------------------------


def double(_module: Any, _inputs: Any, outputs: Tensor) -> Tensor:
    return 2 * outputs


def halve_in_place(_module: Any, inputs: tuple[Tensor]) -> None:
    inputs[0].mul_(0.5)


def test_hooks_that_only_listen_are_dropped_and_others_stay() -> None:
    heard: list[str] = []

    def listen(name: str) -> Any:
        return lambda *_: heard.append(name)

    original: Any = conv_net().eval()
    original.conv1.register_forward_pre_hook(listen("first"))
    original.conv1.register_forward_hook(double)
    original.conv1.register_forward_hook(listen("between"))
    original.conv1.register_forward_hook(lambda m, i, o: o + 1)
    original.conv2.register_forward_pre_hook(halve_in_place)
    original.register_forward_hook(listen("last"), with_kwargs=True, always_call=True)
    expected = original(IMAGES)
    copy: Any = eager_copy(original)
    drop_listeners(copy, (IMAGES,))
    heard.clear()
    assert torch.equal(copy(IMAGES), expected)
    assert heard == []
    assert hooks(copy) == 3
    assert hooks(original) == 6
    assert next(iter(copy.conv1._forward_hooks.values())) is double


def test_a_hook_that_another_one_needs_stays_with_it() -> None:
    net: Any = conv_net()
    net.conv1.register_forward_pre_hook(lambda m, i: setattr(net, "images", i[0]))
    net.register_forward_hook(lambda m, i, o: o + vars(net).pop("images").mean())
    expected = net.eval()(2 * IMAGES)
    drop_listeners(net, (IMAGES,))
    assert torch.equal(net(2 * IMAGES), expected)
    assert hooks(net) == 2


@pytest.mark.parametrize("loaded", [False, True])
def test_weights_that_are_computed_go_on(loaded: bool) -> None:
    """By hooks or by parametrizations, and after other weights were loaded."""

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        net: Any = conv_net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(net.conv1)
        nn.utils.spectral_norm(net.conv2)
        nn.utils.parametrizations.weight_norm(net.fc1)
        nn.utils.parametrizations.spectral_norm(net.fc2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        net(IMAGES)  # in train mode
        return net

    original, other = make(0), make(1)
    copy = eager_copy(original)
    if loaded:
        copy.load_state_dict(other.state_dict())
        original = other
    teacher = taught(copy)
    assert torch.equal(teacher.answer(Call("", (IMAGES,), {}, None)), original.eval()(IMAGES))


# -- the teacher ---------------------------------------------------------------------------------------


def taught(network: Any, precision: Precision | None = None) -> Teacher:
    return Teacher(network, precision or Precision(), (IMAGES,), None, largest=2)


class Asking(Classifier):
    def forward(self, images: Any) -> Any:
        self.log("mean", images.mean())
        self.log_dict({"max": images.max()})
        return self.net(images) * self.trainer.factor


def test_forward_may_ask_the_trainer_and_logs_nothing() -> None:
    class Outer(Asking):
        """A module in a module is a LightningModule too."""

        def __init__(self) -> None:
            super().__init__(Asking())

    module: Any = Outer()
    module.trainer = SimpleNamespace(factor=2)
    teacher = taught(eager_copy(module))
    assert list(teacher.readers) == [""]
    expected = 4 * conv_net().eval()(IMAGES)
    assert torch.equal(teacher.answer(Call("", (IMAGES,), {}, None)), expected)


def test_it_learns_nothing() -> None:
    network = conv_net(dropout=0.5)
    images = IMAGES.clone().requires_grad_()
    teacher = taught(network)
    before = snapshot(network)
    call = Call("", (images,), {}, None)
    answer = teacher.answer(call)
    assert not answer.requires_grad
    assert torch.equal(teacher.answer(call), answer)
    assert not any(p.requires_grad for p in network.parameters())
    assert same_state(snapshot(network), before)


def test_it_answers_in_the_precision_of_the_fit() -> None:
    teacher = taught(conv_net(), MixedPrecision("bf16-mixed", "cpu"))
    answer = teacher.answer(Call("", (IMAGES,), {}, None))
    assert answer.dtype == torch.bfloat16


def test_scores_of_the_student_keep_their_history() -> None:
    teacher = taught(Classifier())
    student = conv_net()
    logits = student(IMAGES)
    assert teacher.scores_of(Call("net", (IMAGES,), {}, {"logits": logits})) is logits
    assert teacher.scores_of(Call("net", (IMAGES,), {}, {"maps": logits})) is None
