"""Statistics of four gloo processes against those of one that has seen all samples."""

from pathlib import Path

import pytest
import torch
from helpers.processes import on_ranks
from helpers.ranks_job import CPU, SHARES, capture_of, merged, refused
from torch import Tensor

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.trainer.merging import merge_over_ranks


def tensors(found: Activations) -> dict[str, Tensor]:
    sums = {
        f"{layer}.{name}": getattr(sums, name)
        for layer, sums in found.outputs.items()
        for name in ("count", "origin", "total", "squares")
    }
    return {**sums, **{layer: moments.held for layer, moments in found.inputs.items()}}


@pytest.mark.usefixtures("every_position")
@pytest.mark.parametrize("network", ["conv", "wide"])
@pytest.mark.parametrize("kind", sorted(SHARES))
def test_ranks_have_what_one_process_has(tmp_path: Path, network: str, kind: str) -> None:
    found = on_ranks(4, merged, tmp_path, network, kind)
    # Whoever decides decides the same, to the last bit.
    for other in found[1:]:
        torch.testing.assert_close(tensors(other), tensors(found[0]), rtol=0, atol=0)
    whole = capture_of(network, [place for share in SHARES[kind] for place in share])
    assert found[0].samples == whole.samples == 18
    assert found[0].outputs.keys() == whole.outputs.keys()
    for layer in whole.outputs:
        one, other = found[0].moments(layer), whole.moments(layer)
        assert torch.equal(one.count, other.count)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.m2, other.m2, rtol=1e-4, atol=1e-5)
    for layer, moments in whole.inputs.items():
        assert found[0].inputs[layer].count == moments.count
        assert (found[0].inputs[layer].vectors is None) == (moments.vectors is None)
        # Samples came in other batches, in whose forward passes float32 rounds otherwise.
        torch.testing.assert_close(found[0].inputs[layer].held, moments.held, rtol=1e-5, atol=1e-5)


def test_the_vectors_of_a_wide_layer_are_held() -> None:
    """Or the case above would not be the one that it is meant to be."""
    assert any(moments.vectors is not None for moments in capture_of("wide", range(18)).inputs.values())


def test_a_process_alone_keeps_what_it_has() -> None:
    own = capture_of("conv", range(18))
    found = merge_over_ranks(lambda: own, CPU)
    torch.testing.assert_close(tensors(found), tensors(own), rtol=0, atol=0)
    with pytest.raises(ValueError, match="No validation batch was captured"):
        merge_over_ranks(lambda: capture_of("conv", ()), CPU)


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("nothing", ["ValueError: No validation batch was captured"] * 2),
        ("sizes", ["ValueError: Layer 'conv1' gave maps of 30 and of 36 positions"] * 2),
        ("error", ["RuntimeError: Pruning failed on rank 1: KeyError: 'no label'", "KeyError: 'no"]),
    ],
)
def test_what_cannot_be_merged_is_told_on_every_rank(
    tmp_path: Path, kind: str, messages: list[str]
) -> None:
    for found, message in zip(on_ranks(2, refused, tmp_path, kind), messages, strict=True):
        assert found.startswith(message)
