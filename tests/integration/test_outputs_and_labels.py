"""Outputs that are no tensors, and labels as data sets have them: a fit and a preview alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.fits import (
    CLASSES,
    HALF,
    Classifier,
    Fit,
    callback,
    conv_net,
    noisy_images,
    val_loader,
)
from helpers.outputs import ModelOutput, Named, Scored
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from acsp_lightning import PruningStep, SelectionConfig, measure_complexity, preview


class Wrapped(Classifier):
    """Returns scores and probabilities in an object of some kind."""

    def __init__(self, kind: Callable[[Tensor, Tensor], Any], **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.net(pixel_values)
        return self.kind(scores, scores.softmax(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch["pixel_values"] if isinstance(batch, dict) else batch[0])


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda scores, aside: {"logits": scores, "aside": aside},
    "ModelOutput": lambda scores, aside: ModelOutput(logits=scores, aside=aside),
    "dataclass": Scored,
    "named tuple": lambda scores, aside: Named(aside, scores),
    "nested": lambda scores, aside: {"logits": scores, "more": [ModelOutput(a=scores * 2)]},
}


def scores_alone(scores: Tensor, aside: Tensor) -> Tensor:
    return scores


@pytest.fixture(scope="module")
def plain_step() -> PruningStep:
    return preview(Wrapped(scores_alone), val_loader(), HALF)


@pytest.mark.parametrize("kind", ["dict", "ModelOutput", "dataclass", "named tuple", "nested"])
def test_a_preview_is_that_of_the_scores_alone(kind: str, plain_step: PruningStep) -> None:
    step = preview(Wrapped(KINDS[kind]), val_loader(), HALF)
    assert step.plan == plain_step.plan
    assert step.before.by_layer == plain_step.before.by_layer
    assert step.accuracy_before == plain_step.accuracy_before
    assert step.accuracy_after == pytest.approx(plain_step.accuracy_after)


@pytest.mark.parametrize("kind", ["ModelOutput", "dataclass"])
def test_a_fit_on_dicts_of_pixel_values_and_labels(fit: Fit, kind: str) -> None:
    data = [{"pixel_values": image, "labels": label} for image, label in noisy_images(18, seed=2)]
    val = DataLoader(data, batch_size=6)
    pruning, expected = callback(), callback()
    fit(Wrapped(KINDS[kind]), [pruning], val=val)
    fit(Wrapped(scores_alone), [expected])
    assert pruning.steps[0].plan == expected.steps[0].plan
    assert pruning.steps[0].accuracy_before == expected.steps[0].accuracy_before


def test_a_tuple_is_traced_and_read_outputs_finds_its_scores(fit: Fit, plain_step: PruningStep) -> None:
    def both(scores: Tensor, aside: Tensor) -> Any:
        return aside, scores

    def second(outputs: Any) -> Any:
        return outputs[1]

    assert preview(Wrapped(both), val_loader(), HALF).accuracy_before is None
    step = preview(Wrapped(both), val_loader(), HALF, read_outputs=second)
    assert (step.plan, step.accuracy_before) == (plain_step.plan, plain_step.accuracy_before)
    pruning = callback(read_outputs=second)
    fit(Wrapped(both), [pruning])
    assert pruning.steps[0].accuracy_after is not None


class Binary(Classifier):
    """One logit for two classes."""

    def __init__(self, column: bool) -> None:
        net = conv_net()
        net.fc2 = nn.Linear(10, 1)
        super().__init__(net)
        self.column = column

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.net(images)
        return logit if self.column else logit.squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logit = self(images).flatten()
        return functional.binary_cross_entropy_with_logits(logit, labels.float())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


@pytest.mark.parametrize("column", [True, False])
def test_one_logit_for_two_classes(fit: Fit, column: bool) -> None:
    images, classes = noisy_images(24, seed=1).tensors
    data = DataLoader(TensorDataset(images, (classes > 0).long()), batch_size=6)
    module, pruning = Binary(column), callback()
    fit(module, [pruning], train=data, val=data)
    with torch.no_grad():
        right = [(module.eval()(x).flatten() > 0) == (y == 1) for x, y in data]
    again = preview(module, data, SelectionConfig(keep=0.5), layers_per_epoch=1)
    assert again.accuracy_before == pytest.approx(torch.cat(right).float().mean().item())
    assert pruning.steps[0].accuracy_before is not None


def relabelled(change: Callable[[Tensor], Tensor]) -> DataLoader[Any]:
    images, labels = noisy_images(18, seed=2).tensors
    return DataLoader(TensorDataset(images, change(labels)), batch_size=6)


class Unscored(Classifier):
    """Its validation takes any labels."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, None], r"Labels have shape \(6, 1\), a column: return labels\.squeeze\(1\)"),
        (lambda y: functional.one_hot(y, CLASSES), r"\(6, 3\), one-hot rows.*labels\.argmax\(dim=1\)"),
        (lambda y: y[:, None, None].expand(-1, 6, 6), r"\(6, 6, 6\), a class for every pixel"),
        (lambda y: y.float(), r"torch\.float32 .*return labels\.long\(\)"),
        (lambda y: y - 1, "Labels contain -1 .*ignored"),
        (lambda y: y + 1, "Labels run from 1 to 3, and forward gives scores of 3 classes"),
        (lambda y: 2 * y, "Labels contain 4, and forward gives scores of 3 classes, 0 to 2"),
        (lambda y: y * 10**9, "Labels contain 1,000,000,000|Labels contain 2,000,000,000"),
    ],
)
def test_labels_are_refused_in_the_same_words(
    fit: Fit, change: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as in_preview:
        preview(Unscored(), relabelled(change), HALF)
    with pytest.raises(ValueError, match=message) as in_fit:
        fit(Unscored(), [callback()], val=relabelled(change))
    assert str(in_fit.value) == str(in_preview.value)


def rarely(*rare: int) -> DataLoader[Any]:
    """Samples of the network's three classes, but a single one of some."""
    images, labels = noisy_images(18, seed=2).tensors
    chosen = [i for i, y in enumerate(labels.tolist()) if y not in rare]
    chosen += [labels.tolist().index(y) for y in rare]
    return DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_size=6)


@pytest.mark.parametrize("rare", [0, 1, 2])
def test_a_class_of_one_sample_is_named_and_left_out(fit: Fit, rare: int) -> None:
    pruning = callback()
    with pytest.warns(UserWarning, match=rf"single sample .* count as absent.*: class {rare}\."):
        fit(Unscored(), [pruning], val=rarely(rare))
    with pytest.warns(UserWarning, match=rf"single sample .* count as absent.*: class {rare}\."):
        step = preview(Unscored(), rarely(rare), HALF)
    for found in (step, pruning.steps[0]):
        assert (found.comparison.classes, found.comparison.unseen) == (2, 1)
        assert found.comparison.class_pairs == 1
        assert found.layers["net.conv1"] == (8, 4)


def test_one_class_of_two_samples_is_too_few(fit: Fit) -> None:
    message = "two samples or more of class 1 alone, one of 2 others; .* at least two classes"
    with pytest.raises(ValueError, match=message):
        preview(Unscored(), rarely(0, 2), HALF)
    with pytest.raises(ValueError, match=message):
        fit(Unscored(), [callback()], val=rarely(0, 2))


def without_learning(module: nn.Module) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.0)


def test_a_network_that_tells_nothing_is_warned_of(fit: Fit) -> None:
    module = Unscored(configure=without_learning)
    images = noisy_images(120, seed=3).tensors[0]
    with torch.no_grad():
        labels = (module.eval()(images).argmax(1) + torch.arange(120)) % 3  # a third is right
    val = DataLoader(TensorDataset(images, labels), batch_size=40)
    message = r"classifies 3\d\.\d% of the validation samples rightly, which is chance among 3 classes"
    with pytest.warns(UserWarning, match=message):
        preview(module, val, HALF)
    with pytest.warns(UserWarning, match=message):
        fit(module.train(), [callback()], val=val)


def test_a_cut_that_destroys_the_network_is_warned_of(fit: Fit) -> None:
    """Twelve classes, each by a channel of its own, of which three stay."""
    net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.ReLU(), nn.Linear(12, 12, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(12))
        net[2].weight.copy_(torch.eye(12))
    labels = torch.arange(120) % 12
    noise = torch.rand(120, 12, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(torch.eye(12)[labels] + 0.1 * noise, labels), batch_size=30)
    options = {"selection": {"keep": 0.25}, "recovery": "none"}
    message = r"half of the accuracy: 100\.0% of .* rightly before it, 25\.0% are .* set a guard"
    with pytest.warns(UserWarning, match=message):
        preview(net, data, **options)
    module = Unscored(net, configure=without_learning)
    with pytest.warns(UserWarning, match=message):
        fit(module, [callback(**options)], train=data, val=data)


def test_complexity_of_whatever_is_returned() -> None:
    x = noisy_images(2, seed=0).tensors[0]
    expected = measure_complexity(Wrapped(scores_alone), x)
    assert measure_complexity(Wrapped(KINDS["ModelOutput"]), x).by_layer == expected.by_layer
