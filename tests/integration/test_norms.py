"""Norms that take all channels together: whole by default, and over fewer channels where asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.fits import Classifier, Fit, callback, val_loader
from helpers.normed import NORMED, normed_net
from helpers.oracle import built, inputs_of, offered
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from acsp_lightning import PruningSettings, PruningStep, SelectionConfig, preview, step_table
from acsp_lightning.pipeline import capture_network, decide_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.report.page import step_page
from acsp_lightning.serialization import decode, encode
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.verification import prunable_groups


@pytest.mark.parametrize("name", NORMED)
def test_by_default_they_stay_whole_and_the_reason_says_what_would_cut_them(name: str) -> None:
    case = NORMED[name]
    tracing = offered(built(case), inputs_of(case), residual=True)
    assert not any(group.norms for group in tracing.groups)
    whole = set(case.cut) - {group.name for group in tracing.groups}
    assert whole
    for layer in whole:
        assert tracing.left_whole[layer].endswith("; norms='refit' cuts it too")


def test_where_nothing_else_can_be_cut_the_error_says_so() -> None:
    case = NORMED["standardised filters"]
    with pytest.raises(ValueError, match=r"standardises its filters.*norms='refit' cuts it too"):
        prunable_groups(built(case), inputs_of(case), residual=True, include=["1.2"])
    groups = prunable_groups(built(case), inputs_of(case), include=["1.2"], norms="refit").groups
    assert [group.name for group in groups] == ["1.2"]


def test_a_forward_that_takes_the_width_of_a_norm_for_granted_is_left_whole() -> None:
    class Fixed(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, (8,), self.weight, self.bias, self.eps)

    model = nn.Sequential(nn.Linear(5, 8), Fixed(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    tracing = offered(model, (torch.rand(3, 5),), norms="refit")
    assert [group.name for group in tracing.groups] == ["2"]
    assert "a norm with a forward of its own" in tracing.left_whole["0"]


def test_records_and_tables_name_them() -> None:
    options = {"norms": "refit", "residual": True}
    step = preview(normed_net(), val_loader(), SelectionConfig(keep=0.5), **options)
    assert step.norms == ("1.0", "2")
    words = "approximate, with the norm over the kept channels: 1.0, 2"
    assert words in " ".join(step_table(step).split())
    assert words in step_page(step, {})
    assert PruningStep.from_dict(step.to_dict()).norms == ("1.0", "2")
    exact = preview(normed_net(), val_loader(), SelectionConfig(keep=0.5), residual=True)
    assert exact.norms == ()
    assert "approximate" not in step_table(exact)


def test_groups_with_norms_are_plain_data() -> None:
    case = NORMED["tokens"]
    for group in offered(built(case), inputs_of(case), residual=True, norms="refit").groups:
        assert decode(ChannelGroup, encode(group, json=True)) == group


def test_a_cut_gives_what_norms_give_the_moments_that_it_had() -> None:
    torch.manual_seed(0)
    network = normed_net().eval()
    site, settings = CopySite(network, list(val_loader())), PruningSettings(norms="refit", residual=True)
    settings = replace(settings, selection=SelectionConfig(keep=0.5))
    example, captured = capture_network(network, site.batches(), settings)
    proposal, recovery = decide_cut(site, captured, settings, example)
    kept = torch.tensor(proposal.plan.kept("2", "out"))
    samples = torch.cat([images for (images,) in recovery.refit.inputs])
    wanted = moments(network, samples)
    cut = site.prune(proposal, recovery)
    for found, before in zip(moments(cut, samples), wanted, strict=True):
        torch.testing.assert_close(found, before[kept], rtol=1e-4, atol=1e-5)
    plain = site.prune(proposal, replace(recovery, refit=None))
    assert not torch.allclose(moments(plain, samples)[1], wanted[1][kept], rtol=1e-2)


def moments(network: nn.Module, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels that the last norm gives."""
    with torch.no_grad():
        maps = network[:3](samples).transpose(0, 1).flatten(1)
    return maps.mean(1), maps.std(1, correction=0)


@pytest.mark.parametrize("copies", [True, False])
def test_a_fit_goes_on_with_its_optimizer_and_averages(fit: Fit, copies: bool) -> None:
    module, averages = Classifier(normed_net()), EMAWeightAveraging(decay=0.7)
    pruning = callback(0, norms="refit", residual=True)
    others: list[Any] = [averages] if copies else []
    trainer = fit(module, [pruning, *others], max_epochs=3)
    norm = module.net[2]
    assert (norm.normalized_shape, norm.weight.shape) == ((4,), (4,))
    (optimizer,) = trainer.optimizers
    assert optimizer.state[norm.weight]["momentum_buffer"].shape == (4,)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    if copies:
        average = averages._average_model.module
        assert average.net[2].weight.shape == (4,)
        assert average.net[2].normalized_shape == (4,)
