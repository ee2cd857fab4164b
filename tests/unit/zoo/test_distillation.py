import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from acsp_lightning import ACSPPruningCallback, SelectionConfig
from acsp_lightning.zoo import VGG, DigitsDataModule, ImageClassifier
from acsp_lightning.zoo.distillation import Teacher


def network(seed: int = 0) -> VGG:
    torch.manual_seed(seed)
    return VGG([[6], [8]], in_channels=1)


def test_the_loss_is_the_published_one() -> None:
    """By the definition, class by class, in double precision."""
    student, teacher = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    images, labels = torch.randn(4, 5).double(), torch.tensor([0, 2, 1, 1])
    hard = nn.functional.cross_entropy(student(images), labels)
    found = Teacher(teacher, weight=0.7, temperature=3.0).blend(hard, student(images), images)
    soft = 0.0
    for logits, wanted in zip(student(images).tolist(), teacher(images).tolist(), strict=True):
        p = torch.tensor([w / 3.0 for w in wanted]).double().exp()
        q = torch.tensor([z / 3.0 for z in logits]).double().exp()
        p, q = p / p.sum(), q / q.sum()
        soft += float((p * (p / q).log()).sum()) / 4
    assert found.item() == pytest.approx(0.3 * hard.item() + 0.7 * 9.0 * soft, rel=1e-6)


def test_a_network_that_agrees_with_its_teacher_has_nothing_to_learn_from_it() -> None:
    student = network().eval()
    images = torch.rand(2, 1, 8, 8)
    loss = Teacher(copy.deepcopy(student), weight=1.0).blend(torch.tensor(5.0), student(images), images)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_gradients_stay_comparable_when_the_temperature_changes() -> None:
    teacher, images = network(1), torch.rand(8, 1, 8, 8)
    logits = torch.randn(8, 10) * 0.1

    def gradient(temperature: float) -> torch.Tensor:
        own = logits.clone().requires_grad_()
        Teacher(teacher, 1.0, temperature).blend(torch.tensor(0.0), own, images).backward()
        assert own.grad is not None
        return own.grad

    # Hinton et al.: at high temperatures the gradient tends to (z - v) / C whatever T is.
    assert torch.allclose(gradient(50.0), gradient(100.0), rtol=0.05, atol=1e-5)


def test_the_teacher_is_no_part_of_the_module() -> None:
    module = ImageClassifier(network(), teacher=network(1))
    alone = ImageClassifier(network())
    assert list(module.state_dict()) == list(alone.state_dict())
    assert [name for name, _ in module.named_modules()] == [name for name, _ in alone.named_modules()]
    assert [name for name, _ in module.named_parameters()] == [n for n, _ in alone.named_parameters()]


@pytest.mark.filterwarnings("ignore:The network classifies .* which is chance")
def test_the_teacher_is_neither_trained_nor_cut(make_trainer) -> None:
    teacher = network(1)
    before = copy.deepcopy(teacher.state_dict())
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(network(), teacher=teacher)
    pruning = ACSPPruningCallback(epochs=[0], selection=SelectionConfig(flops=0.5), report_plots=False)
    make_trainer(pruning, limit_train_batches=4).fit(module, datamodule=DigitsDataModule())
    (step,) = pruning.steps
    assert step.after.flops < step.before.flops
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_teacher_changes_what_is_learned(make_trainer) -> None:
    losses = []
    for teacher in (None, network(1)):
        pl.seed_everything(0, verbose=False)
        module = ImageClassifier(network(), teacher=teacher)
        trainer = make_trainer(max_epochs=1, limit_train_batches=1)
        trainer.fit(module, datamodule=DigitsDataModule())
        losses.append(trainer.callback_metrics["train_loss"])
    assert losses[0] != losses[1]


def test_weights_of_the_teacher_come_from_a_file(tmp_path) -> None:
    trained, teacher = network(1), network(2)
    torch.save(trained.state_dict(), tmp_path / "teacher.pt")
    ImageClassifier(network(), teacher=teacher, teacher_weights=tmp_path / "teacher.pt")
    assert torch.equal(teacher.classifier.weight, trained.classifier.weight)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"teacher_weights": "file.pt"}, "there is no teacher"),
        ({"teacher": nn.Linear(2, 2), "teacher_weight": 1.5}, "weight is 1.5"),
        ({"teacher": nn.Linear(2, 2), "temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_impossible_teachers_are_refused(options, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ImageClassifier(network(), **options)
