import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fits import conv_net, same_state, snapshot, val_loader
from helpers.outputs import ModelOutput, Named, Scored
from scipy import stats
from torch import Tensor, nn

from acsp_lightning.capture.batches import read_batch
from acsp_lightning.measure.accuracy import (
    ClassCounts,
    check_outputs,
    count_by_class,
    count_correct,
    is_at_chance,
)


def fixed_logits() -> nn.Module:
    """Logits are the inputs."""
    return nn.Identity()


def test_accuracy_by_hand_over_uneven_batches() -> None:
    right = torch.eye(3)
    batches = [(right, torch.tensor([0, 1, 2])), (right[:2], torch.tensor([1, 1]))]
    assert count_correct(fixed_logits(), batches, read_batch) == (4, 5)


def test_accuracy_where_there_is_none() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    assert count_correct(fixed_logits(), [], read_batch) == (0, 0)
    others = (
        torch.zeros(2, 3, 4),
        labels,
        torch.tensor(1.0),
        [torch.eye(2)],
        {"features": torch.eye(2)},
    )
    for other in (*others, {"logits": labels}, {"logits": None}, torch.zeros(2, 0), torch.eye(3)):
        assert count_correct(fixed_logits(), [(other, labels)], read_batch) is None


SCORES = torch.tensor([[0.1, 0.9], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
TRUTH = torch.tensor([1, 0, 0, 0])  # three of four are right


@pytest.mark.parametrize(
    "outputs",
    [
        SCORES,
        {"logits": SCORES, "features": torch.rand(4, 7)},
        ModelOutput(logits=SCORES, hidden_states=torch.rand(4, 7)),
        Scored(SCORES),
        Named(torch.rand(4, 7), SCORES),
        SimpleNamespace(logits=SCORES),
        SCORES[:, 1] - 0.5,
        SCORES[:, 1:] - 0.5,
        {"logits": SCORES[:, 1] - 0.5},
    ],
)
def test_class_scores_are_found_in_outputs(outputs: Any) -> None:
    assert count_correct(fixed_logits(), [(outputs, TRUTH)], read_batch) == (3, 4)


@pytest.mark.parametrize(
    ("outputs", "read_outputs"),
    [
        ((torch.rand(4, 7), SCORES), lambda outputs: outputs[1]),
        ({"y": SCORES}, lambda outputs: outputs["y"]),
        (SCORES[:, 1], lambda probability: probability - 0.5),
        (-SCORES, lambda distance: -distance),
    ],
)
def test_read_outputs_finds_them_elsewhere(outputs: Any, read_outputs: Any) -> None:
    counts = count_correct(fixed_logits(), [(outputs, TRUTH)], read_batch, read_outputs)
    assert counts == (3, 4)


def test_read_outputs_may_say_that_there_are_none() -> None:
    assert count_correct(fixed_logits(), [(SCORES, TRUTH)], read_batch, lambda outputs: None) is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("logits", r"a str \(no tensor\)"),
        (torch.zeros(4, 2, 3), r"a Tensor \(torch\.float32 of shape \(4, 2, 3\)\)"),
        (TRUTH, r"a Tensor \(torch\.int64 of shape \(4,\)\)"),
    ],
)
def test_what_read_outputs_returns_is_checked(found: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"read_outputs returned {told}.*class scores \(B, C\)"):
        count_correct(fixed_logits(), [(SCORES, TRUTH)], read_batch, lambda outputs: found)


def test_a_single_number_is_no_logit_of_three_classes() -> None:
    later = torch.tensor([1, 0, 2, 0])
    batches = [(SCORES[:, 1], TRUTH), (SCORES[:, 1], later)]
    assert count_correct(fixed_logits(), batches, read_batch) is None


def labelled(*labels: int) -> Tensor:
    return torch.tensor(labels)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (torch.rand(2, 10), labelled(0, 9)),
        (torch.rand(2), labelled(0, 1)),
        (torch.rand(2, 1), labelled(0, 4)),  # an ordinal regression
        (torch.rand(2, 3, 8, 8), labelled(0, 40)),
        ({"embedding": torch.rand(2, 3)}, labelled(0, 40)),
    ],
)
def test_labels_within_the_outputs(outputs: Any, labels: Tensor) -> None:
    check_outputs(fixed_logits(), (outputs,), labels)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (
            torch.rand(2, 10),
            labelled(0, 10),
            "contain 10, .* of 10 classes, 0 to 9. Give the network an",
        ),
        ({"logits": torch.rand(2, 10)}, labelled(3, 255), "Labels contain 255, .* read_outputs="),
        (torch.rand(2, 10), labelled(1, 10), "run from 1 to 10, .* of 10 classes.*Return labels - 1"),
        (
            Scored(torch.rand(2, 2)),
            labelled(1, 2),
            "run from 1 to 2, .* of 2 classes.*Return labels - 1",
        ),
    ],
)
def test_labels_beyond_the_outputs(outputs: Any, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_outputs(fixed_logits(), (outputs,), labels)
    check_outputs(fixed_logits(), (outputs,), labels, lambda outputs: None)


def test_accuracy_runs_in_eval_mode_and_leaves_the_model_alone() -> None:
    model = conv_net(dropout=0.9).train()
    before = snapshot(model)
    first = count_correct(model, val_loader(), read_batch)
    assert first == count_correct(model, val_loader(), read_batch)
    assert same_state(snapshot(model), before)
    assert all(module.training for module in model.modules())


def batches(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 1, 6, 6, generator=generator) * (i + 1) for i, size in enumerate(sizes)]


def test_samples_are_counted_by_class() -> None:
    scores = torch.eye(3)[[0, 1, 1, 2, 0, 0]]
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    batches = [(scores[:4], labels[:4]), (scores[4:], labels[4:])]
    found = count_by_class(fixed_logits(), batches, read_batch)
    assert found is not None
    assert found.right.tolist() == [2, 1, 1]
    assert found.seen.tolist() == [2, 2, 2]
    assert found.accuracy == 4 / 6
    assert count_correct(fixed_logits(), batches, read_batch) == (4, 6)


def test_labels_beyond_the_scores_take_no_room() -> None:
    scores, labels = torch.eye(3)[[0, 1, 2]], torch.tensor([0, 5, 70_000])
    found = count_by_class(fixed_logits(), [(scores, labels)], read_batch)
    assert found is not None
    assert (found.right.tolist(), found.seen.tolist()) == ([1, 0, 0, 0], [1, 0, 0, 2])


def test_counts_of_disjoint_samples_add_up() -> None:
    one = ClassCounts(torch.tensor([1, 2]), torch.tensor([3, 4]))
    other = ClassCounts(torch.tensor([1, 0, 5]), torch.tensor([1, 1, 6]))
    for total in (one + other, other + one):
        assert total.right.tolist() == [2, 2, 5]
        assert total.seen.tolist() == [4, 5, 6]
    assert one.right.tolist() == [1, 2]
    nothing = ClassCounts(*torch.zeros(2, 0, dtype=torch.int64))
    assert math.isnan(nothing.accuracy)


@pytest.mark.parametrize(("samples", "classes"), [(50, 2), (400, 10), (1024, 100)])
def test_guesses_are_at_chance_about_as_often_as_a_normal_variable_is_below_one(
    samples: int, classes: int
) -> None:
    guessed = np.random.default_rng(0).binomial(samples, 1 / classes, 4000) / samples
    found = np.mean([is_at_chance(accuracy, samples, classes) for accuracy in guessed])
    assert found == pytest.approx(stats.norm.cdf(1), abs=0.06)
    assert not is_at_chance(1 / classes + 5 / samples**0.5, samples, classes)
