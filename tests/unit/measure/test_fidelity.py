"""Two networks compared sample by sample, against numpy, scipy and torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.logs import Log
from helpers.outputs import ModelOutput
from scipy import stats
from torch import Tensor, nn
from torchmetrics.functional import accuracy, cohen_kappa

from acsp_lightning.measure.fidelity import Estimate, collect_scores, compare_scores


def scores(samples: int = 400, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Of two networks of which one is a little worse, with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    uncut = torch.randn(samples, classes, generator=generator)
    uncut[torch.arange(samples), labels] += 1.5
    cut = uncut + 0.8 * torch.randn(samples, classes, generator=generator)
    return uncut, cut, labels


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_those_of_torchmetrics(seed: int) -> None:
    uncut, cut, labels = scores(seed=seed)
    found = compare_scores(uncut, cut, labels)
    before, after = (float(accuracy(s, labels, task="multiclass", num_classes=5)) for s in (uncut, cut))
    assert found.samples == 400
    assert found.accuracy == pytest.approx(after)
    assert found.drop.mean == pytest.approx(before - after)
    assert before - after > 0.02
    # The predictions of one network as the truth of the other.
    same = accuracy(cut, uncut.argmax(1), task="multiclass", num_classes=5)
    assert found.agreement.mean == pytest.approx(float(same))
    assert cohen_kappa(cut, uncut.argmax(1), "multiclass", num_classes=5) < found.agreement.mean < 1


def test_the_error_of_the_scores_is_a_share_of_their_variance() -> None:
    uncut, cut, labels = scores()
    a, b = uncut.double().numpy(), cut.double().numpy()
    off = (b - a) - (b - a).mean(1, keepdims=True)
    around = a - a.mean(1, keepdims=True)
    found = compare_scores(uncut, cut, labels).score_error
    assert found.mean == pytest.approx((off**2).sum() / (around**2).sum())
    by_sample = (off**2).mean(1) / (around**2).mean(1).mean()
    assert found.error == pytest.approx(stats.sem(by_sample))


def test_the_error_of_no_scores_at_all_is_one_and_of_the_same_ones_none() -> None:
    uncut, _, labels = scores()
    nothing = compare_scores(uncut, torch.zeros_like(uncut), labels)
    assert nothing.score_error.mean == pytest.approx(1)
    same = compare_scores(uncut, uncut.clone(), labels)
    assert same.score_error == same.drop == Estimate(0.0, 0.0)
    assert same.agreement == Estimate(1.0, 0.0)


def test_what_is_added_to_all_scores_of_a_sample_does_not_count() -> None:
    uncut, cut, labels = scores()
    shifts = 3 * torch.randn(len(cut), 1, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close((cut + shifts).softmax(1), cut.softmax(1))
    found, expected = (compare_scores(uncut, c, labels) for c in (cut + shifts, cut))
    assert found.score_error.mean == pytest.approx(expected.score_error.mean, rel=1e-5)
    assert found.agreement == expected.agreement
    shifted = compare_scores(uncut + shifts, cut, labels)
    assert shifted.score_error.mean == pytest.approx(expected.score_error.mean, rel=1e-5)


def test_scores_without_any_variance_are_no_error() -> None:
    flat, labels = torch.ones(6, 3), torch.arange(6) % 3
    assert compare_scores(flat, flat, labels).score_error.mean == 0
    assert compare_scores(flat, scores(6, 3)[0], labels).score_error.mean > 1


def test_classes_that_the_uncut_network_masks_do_not_count() -> None:
    uncut, cut, labels = scores()
    without = compare_scores(uncut, cut, labels)
    mask = torch.full((len(labels), 2), float("-inf"))
    for other in (mask, torch.zeros_like(mask) + 99):
        found = compare_scores(torch.cat([uncut, mask], 1), torch.cat([cut, other], 1), labels)
        assert found == without


def test_equal_networks_with_a_masked_class_agree() -> None:
    uncut, _, labels = scores()
    uncut[:, 2] = float("-inf")
    found = compare_scores(uncut, uncut.clone(), labels)
    assert found.agreement == Estimate(1.0, 0.0)
    assert found.score_error == found.drop == Estimate(0.0, 0.0)
    assert compare_scores(uncut, torch.zeros_like(uncut), labels).score_error.mean == pytest.approx(1)


@pytest.mark.parametrize("field", ["drop", "agreement", "score_error"])
def test_standard_errors_are_those_of_a_bootstrap_over_samples(field: str) -> None:
    uncut, cut, labels = scores(samples=300)
    random = torch.Generator().manual_seed(1)
    power = uncut.var(1, correction=0).mean()
    drawn = []
    for _ in range(1500):
        rows = torch.randint(300, (300,), generator=random)
        found = compare_scores(uncut[rows], cut[rows], labels[rows])
        mean = getattr(found, field).mean
        # The variance that errors are shares of is taken as known.
        drawn.append(mean * uncut[rows].var(1, correction=0).mean() / power if field[0] == "s" else mean)
    error = getattr(compare_scores(uncut, cut, labels), field).error
    assert error == pytest.approx(float(np.std(drawn)), rel=0.07)


def test_pairing_makes_the_error_of_a_drop_smaller_than_that_of_two_accuracies() -> None:
    uncut, cut, labels = scores()
    right = [(s.argmax(1) == labels).double().numpy() for s in (uncut, cut)]
    paired = compare_scores(uncut, cut, labels).drop.error
    assert paired == pytest.approx(stats.sem(right[0] - right[1]))
    assert paired < 0.9 * np.hypot(stats.sem(right[0]), stats.sem(right[1]))


def test_a_single_sample_has_no_error() -> None:
    found = Estimate.of(torch.tensor([0.25]))
    assert found.mean == 0.25
    assert np.isnan(found.error)


def test_an_average_over_half_precision_is_taken_in_double() -> None:
    values = torch.full((4096,), 1.001).half()
    assert Estimate.of(values).mean == pytest.approx(float(values[0]), rel=1e-12)


# -- collecting ----------------------------------------------------------------------------------------
class Net(nn.Module):
    """Linear, in some kind of output, with what would show if it were run in train mode."""

    def __init__(self, kind: Any = lambda scores: scores) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.kind = kind
        self.sizes = Log()

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        self.sizes.append(len(x))
        return self.kind(scale * self.drop(self.norm(self.fc(x))))


@pytest.mark.parametrize("sizes", [[1], [7, 7, 2], [20]])
def test_scores_are_collected_batch_by_batch(sizes: list[int]) -> None:
    net, x = Net().train(), torch.randn(sum(sizes), 4)
    labels = torch.arange(len(x)) % 3
    found = collect_scores(net, [(part, 2.0) for part in x.split(sizes)], labels)
    assert net.sizes == sizes
    assert net.training
    assert net.norm.num_batches_tracked == 0
    assert found is not None
    assert not found.requires_grad
    torch.testing.assert_close(found, net.eval()(x, 2.0).detach())


def test_scores_are_found_in_outputs_and_their_absence_is_too() -> None:
    x, labels = torch.randn(9, 4), torch.arange(9) % 3
    plain = collect_scores(Net(), [(x,)], labels)
    named = collect_scores(Net(lambda s: ModelOutput(logits=s)), [(x,)], labels)
    read = collect_scores(Net(lambda s: {"deep": s}), [(x,)], labels, lambda found: found["deep"])
    for found in (named, read):
        torch.testing.assert_close(found, plain)
    assert collect_scores(Net(lambda s: {"deep": s}), [(x,)], labels) is None
    assert collect_scores(Net(lambda s: s[:1]), [(x,)], labels) is None, "not a row for each sample"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_overflow_are_as_good_as_none(value: float) -> None:
    scores = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    found = compare_scores(scores, torch.full_like(scores, value), labels)
    assert found == compare_scores(scores, torch.zeros_like(scores), labels)
    assert found.score_error.mean == pytest.approx(1)


def test_a_forward_that_writes_to_its_inputs_finds_them_as_they_were() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mul_(0.5).add_(1.0))

    model, inputs = Writing(), torch.randn(200, 4)
    kept = inputs.clone()
    found = [collect_scores(model, [(inputs,)], torch.arange(200) % 3) for _ in range(2)]
    assert torch.equal(inputs, kept)
    assert torch.equal(*found)


def test_what_has_no_row_for_each_sample_is_handed_on_whole() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            assert mask.shape == (10, 4)
            return x * mask.sum(0)

    inputs, mask = torch.randn(200, 4), torch.ones(10, 4)
    found = collect_scores(Masked(), [(inputs, mask)], torch.arange(200) % 4)
    torch.testing.assert_close(found, 10 * inputs)
