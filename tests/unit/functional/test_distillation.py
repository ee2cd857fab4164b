"""Against PyTorch's own losses, and a definition written out in double precision."""

import math

import pytest
import torch
from torch.nn import functional

from acsp_lightning.functional import distillation_loss, taught_loss


def scores(seed, samples=4, classes=3):
    return 3 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_the_loss_is_the_published_one(temperature):
    """By the definition, class by class."""
    student, teacher = scores(0).double(), scores(1).double()
    expected = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(s / temperature) for s in row] for row in (z, v))
        p, q = [a / sum(p) for a in p], [b / sum(q) for b in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(student)
    found = distillation_loss(student, teacher, temperature)
    assert found.item() == pytest.approx(temperature**2 * expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_value_and_gradient_are_those_of_the_soft_cross_entropy(temperature):
    """Hinton's form, which differs by the entropy of the teacher, a constant."""
    student, teacher = scores(0).double().requires_grad_(), scores(1).double()
    soft = (teacher / temperature).softmax(1)
    cross = temperature**2 * functional.cross_entropy(student / temperature, soft)
    entropy = temperature**2 * torch.special.entr(soft).sum(1).mean()
    found = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(found, cross - entropy)
    (a,), (b,) = torch.autograd.grad(found, student), torch.autograd.grad(cross, student)
    torch.testing.assert_close(a, b)


def test_equals_kl_div_to_the_bit():
    student, teacher = scores(0).requires_grad_(), scores(1)
    expected = 16.0 * functional.kl_div(
        functional.log_softmax(student / 4, 1),
        functional.log_softmax(teacher / 4, 1),
        reduction="batchmean",
        log_target=True,
    )
    found = distillation_loss(student, teacher, 4.0)
    assert torch.equal(found, expected)
    (a,), (b,) = torch.autograd.grad(found, student), torch.autograd.grad(expected, student)
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    student, teacher = scores(0).to(dtype), scores(1).to(dtype)
    found = distillation_loss(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(student.float(), teacher.float()))


def test_what_is_added_to_all_scores_does_not_count():
    student = scores(0).double()
    shifted = student + torch.arange(4.0).double()[:, None]
    assert distillation_loss(shifted, student).item() == pytest.approx(0.0, abs=1e-12)


def test_a_teacher_that_is_sure_gives_no_nan():
    sure = torch.tensor([[1000.0, -1000.0]])
    assert distillation_loss(torch.zeros(1, 2), sure, 1.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("weight", "blended"), [(0.0, 2.0), (0.25, 2.5), (1.0, 4.0)])
def test_the_blend(weight, blended):
    assert taught_loss(torch.tensor(2.0), torch.tensor(4.0), weight).item() == blended
