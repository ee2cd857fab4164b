from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from acsp_lightning.capture.batches import read_batch
from acsp_lightning.capture.samples import (
    SampleBatches,
    SampleCollector,
    _Kind,
    by_batch,
    collect_samples,
    join_samples,
)


def labelled(sizes: list[int], side: int = 2, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Images that show their number."""
    numbers = torch.arange(start, start + sum(sizes)).float()
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, side, side)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(sizes)]


def collected(data: Any, samples: int, model: nn.Module | None = None) -> Any:
    collector = SampleCollector(samples)
    collect_samples(model or nn.Identity(), data, read_batch, collector)
    return None if collector.samples is None else whole(collector.samples[0])


def whole(batches: Sequence[Any]) -> Any:
    """Arguments of all samples; what has no row for each is that of the first batch."""
    leaves = [tree_flatten(batch)[0] for batch in batches]
    joined = [
        torch.cat(found) if isinstance(found[0], Tensor) and not same(found) else found[0]
        for found in zip(*leaves, strict=True)
    ]
    return tree_unflatten(joined, tree_flatten(batches[0])[1])


def same(found: Sequence[Tensor]) -> bool:
    return all(one.shape == (10, 10) for one in found)


def numbers(inputs: Any) -> list[int]:
    (images,) = inputs
    assert images.shape[1:] == (1, 2, 2)
    return images[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize(
    ("side", "dtype", "expected"),
    [
        (2, torch.float32, 64),
        (4, torch.float32, 64),
        (8, torch.float32, 31),
        (8, torch.float16, 60),
        (16, torch.float32, 16),
    ],
)
def test_how_many_samples_serve_where_nobody_says_so(
    side: int, dtype: torch.dtype, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit, with their labels of eight bytes; arguments without samples do not count."""
    for name, value in {"MOST": 64, "LEAST": 16, "BYTES": 2**13}.items():
        monkeypatch.setattr(f"acsp_lightning.capture.samples.{name}", value)
    collector = SampleCollector(None)
    for size in (0, 3, 200):
        images = torch.zeros(size, 1, side, side, dtype=dtype)
        table = torch.eye(1000).to_sparse()
        collector.add((images, {"table": table, "mode": None}), torch.zeros(size, dtype=torch.int64))
    collector.finish()
    assert collector.samples is not None
    assert len(collector.samples[1]) == expected


def test_images_of_imagenet_are_512() -> None:
    """The figures of the manual, for float32 RGB images."""
    figures = {32: 2048, 73: 2048, 74: 2042, 128: 682, 147: 517, 148: 512, 224: 512}
    for side, expected in figures.items():
        leaves = [torch.empty(1, 3, side, side), torch.zeros(1, dtype=torch.int64)]
        assert _Kind.of(leaves, tree_flatten(leaves)[1], 1).usual_samples == expected


@pytest.mark.parametrize("collectors", [1, 3])
def test_collectors_share_the_samples(collectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acsp_lightning.capture.samples.MOST", 10)
    for samples in (None, 10):
        collector = SampleCollector(samples, collectors=collectors)
        collect_samples(nn.Identity(), labelled([4] * 6), read_batch, collector)
        assert collector.samples is not None
        assert len(collector.samples[1]) == -(-10 // collectors)


@pytest.mark.parametrize("samples", [12, 13, 100])
def test_all_samples_where_there_are_no_more(samples: int) -> None:
    assert numbers(collected(labelled([4, 5, 3]), samples)) == list(range(12))


@pytest.mark.parametrize("total", [13, 24, 25, 47, 100, 257])
@pytest.mark.parametrize("samples", [1, 2, 5, 12])
def test_samples_are_spread_over_all_batches(samples: int, total: int) -> None:
    found = numbers(collected(labelled([7] * (total // 7) + [total % 7]), samples))
    assert len(found) == samples
    assert found[0] == 0
    if samples > 1:
        # Evenly, but for steps that are rounded, and an end that is cut off.
        steps = torch.tensor(found).diff() * samples / total
        assert steps.min() > 0.4
        assert steps.max() < 2
        assert found[-1] >= total - 2 * total / samples


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64])
def test_how_the_batches_are_split_does_not_matter(size: int) -> None:
    run_on_all_ranks = numbers(collected(labelled([100]), 6))
    assert numbers(collected(labelled([size] * (100 // size) + [100 % size]), 6)) == run_on_all_ranks


def test_no_batch_gives_no_inputs() -> None:
    assert collected([], 8) is None


def test_batches_of_another_size_are_passed_over() -> None:
    data = [*labelled([3]), *labelled([4], side=7), *labelled([2], start=3)]
    assert numbers(collected(data, 100)) == [0, 1, 2, 3, 4]
    assert numbers(collected(data, 2)) == [0, 4]


def test_inputs_of_several_tensors_and_what_is_no_tensor() -> None:
    """A dict is one argument, unless the example says that forward takes names."""
    labels = torch.zeros(3, dtype=torch.int64)
    inputs = {"a": torch.randn(3, 2), "mode": "fast"}
    data = [(inputs, labels), ({**inputs, "a": inputs["a"] + 1}, labels)]
    (found,) = collected(data, 6)
    assert torch.equal(found["a"], torch.cat([inputs["a"], inputs["a"] + 1]))
    assert found["mode"] == "fast"

    class Named(nn.Module):
        example_input_array = {"mode": "slow", "a": torch.zeros(1, 2)}  # noqa: RUF012 (as Lightning has it)

        def forward(self, a: Tensor, mode: str) -> Tensor:
            return a

    tensor, mode = collected(data, 6, Named())
    assert torch.equal(tensor, found["a"])
    assert mode == "fast"


def test_several_arguments_stay_in_step() -> None:
    class Two(nn.Module):
        example_input_array = (torch.zeros(1, 2), torch.zeros(1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a

    values = torch.arange(40.0)
    data = [((v[:, None].expand(-1, 2), v), v.long()) for v in values.split(7)]
    first, second = collected(data, 6, Two())
    assert len(first) == 6
    assert first[:, 0].tolist() == second.tolist()


def test_collecting_leaves_the_batches_alone() -> None:
    (images, labels), *_ = data = labelled([4])
    before = images.clone()
    (inputs,) = collected(data, 4)
    inputs.zero_()
    assert torch.equal(images, before)
    assert len(labels) == 4


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("samples", [5, 20, 500])
def test_of_some_samples_only(size: int, samples: int) -> None:
    """Those that ``among`` allows, counted over all batches, evenly spread; and no others."""
    allowed = list(range(1, 100, 3))
    collector = SampleCollector(
        samples, lambda start, count: torch.arange(start, start + count) % 3 == 1
    )
    collect_samples(
        nn.Identity(), labelled([size] * (100 // size) + [100 % size]), read_batch, collector
    )
    assert collector.samples is not None
    found = numbers(whole(collector.samples[0]))
    assert set(found) <= set(allowed)
    assert len(found) == min(samples, len(allowed))
    assert found[0] == 1
    assert max(torch.tensor(found).diff().tolist()) <= 2 * 3 * -(-len(allowed) // len(found))


def test_batches_of_another_size_count_among_those_before() -> None:
    """Or else what is collected would not be what a capture passes over."""
    data = [*labelled([3]), *labelled([4], side=7, start=3), *labelled([5], start=7)]
    collector = SampleCollector(100, lambda start, count: torch.arange(start, start + count) % 2 == 0)
    collect_samples(nn.Identity(), data, read_batch, collector)
    assert collector.samples is not None
    assert numbers(whole(collector.samples[0])) == [0, 2, 8, 10]


def test_labels_come_with_their_samples() -> None:
    images = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = [(x, x[:, 0, 0, 0].long() + 5) for x in images.split(7)]
    one, other = SampleCollector(6), SampleCollector(9, lambda start, count: torch.ones(count).bool())
    collect_samples(nn.Identity(), data, read_batch, one, other)
    for collector, count in ((one, 6), (other, 9)):
        assert collector.samples is not None
        batches, labels = collector.samples
        inputs = whole(batches)
        assert labels.tolist() == [number + 5 for number in numbers(inputs)]
        assert len(labels) == count


@pytest.mark.parametrize("samples", [4, 100])
def test_what_has_no_row_for_each_sample_is_kept_whole(samples: int) -> None:
    mask, labels = torch.eye(10), torch.zeros(6, dtype=torch.int64)

    class Masked(nn.Module):
        example_input_array = (torch.zeros(2, 3), torch.zeros(10, 10))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x

    images = torch.arange(36.0).view(12, 3)
    data = [((images[:6], mask), labels), ((images[6:], mask), labels)]
    found, kept = collected(data, samples, Masked())
    assert torch.equal(kept, mask)
    assert len(found) == min(samples, 12)
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in images.tolist()}


@pytest.mark.parametrize("samples", [5, 21, 40, 500])
@pytest.mark.parametrize("sizes", [[7] * 14 + [2], [40, 40, 20], [3, 40, 3, 40, 14], [100]])
def test_samples_come_in_batches_of_the_size_of_the_largest(sizes: list[int], samples: int) -> None:
    collector = SampleCollector(samples)
    collect_samples(nn.Identity(), labelled(sizes), read_batch, collector)
    assert collector.samples is not None
    batches, labels = collector.samples
    lengths, count = [len(images) for (images,) in batches], min(samples, 100)
    largest = max(sizes)
    assert lengths == [largest] * (count // largest) + [count % largest] * (count % largest > 0)
    assert len(labels) == count
    assert numbers(whole(batches)) == sorted(set(numbers(whole(batches))))
    assert [len(images) for (images,) in batches[1:]] == lengths[1:]
    # Asked again it says the same.
    assert numbers(whole(collector.samples[0])) == numbers(whole(batches))


def test_samples_rest_on_the_cpu_and_are_moved_where_they_came_from() -> None:
    """The device "meta" stands for one: what goes there loses its values, and shows where it is."""
    leaves, structure = tree_flatten((torch.zeros(2, 3), {"lengths": torch.ones(2), "mode": 1}))
    devices = [torch.device("meta"), torch.device("cpu"), None]
    rest = SampleBatches([leaves] * 3, structure, devices)
    for images, more in rest:
        assert images.device.type == "meta"
        assert more["lengths"].device.type == "cpu"
        assert more["mode"] == 1
    assert len(rest) == len(list(rest)) == 3


def test_samples_for_which_there_is_no_room_are_read_from_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("acsp_lightning.structure.store.ROOM", 100)
    data = [((images, {"more": images + 1, "mode": "a"}), labels) for images, labels in labelled([5, 7])]
    collector = SampleCollector(100)
    collect_samples(nn.Identity(), data, read_batch, collector)
    assert collector.samples is not None
    batches, labels = collector.samples
    ((images, more),) = whole(batches)
    assert images[:, 0, 0, 0].int().tolist() == list(range(12))
    assert torch.equal(more["more"], images + 1)
    assert more["mode"] == "a"
    assert len(labels) == 12
    assert [type(leaf.held).__name__ for leaf in batches._batches[1][:2]] == ["_Place"] * 2
    assert all(
        torch.equal(one, other)
        for one, other in zip(*(tree_flatten(batches[0])[0][:2] for _ in range(2)), strict=True)
    )


@pytest.mark.parametrize("most", [3, 8, 40])
def test_samples_of_several_processes_are_those_of_one_evenly_spaced(most: int) -> None:
    parts = []
    for start in (0, 12):
        collector = SampleCollector(100)
        collect_samples(nn.Identity(), labelled([4, 5, 3], start=start), read_batch, collector)
        parts.append(by_batch(collector.samples))
    assert [len(labels) for _, labels in parts[0]] == [5, 5, 2]
    found = join_samples([parts[0], by_batch(None), parts[1]], most, torch.device("cpu"))
    assert found is not None
    joined = numbers(whole(found[0]))
    assert len(found[1]) == len(joined) == min(most, 24)
    assert joined[0] == 0
    steps = torch.tensor(joined).diff() * len(joined) / 24
    assert 0.4 < steps.min() <= steps.max() < 2


def test_no_samples_of_any_process() -> None:
    assert join_samples([[], by_batch(None)], 8, torch.device("cpu")) is None


def test_samples_that_were_joined_are_moved_to_where_they_are_needed_one_by_one() -> None:
    collector = SampleCollector(100)
    collect_samples(nn.Identity(), labelled([4, 4]), read_batch, collector)
    part = by_batch(collector.samples)
    assert {images.device.type for (images,), _ in part} == {"cpu"}
    found = join_samples([part], 100, torch.device("meta"))
    assert found is not None
    assert found[0][1][0].device.type == "meta"
    assert {images.device.type for (images,) in found[0].resting} == {"cpu"}
