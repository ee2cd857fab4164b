from pathlib import Path

import pytest
import torch
from helpers.mixed import Mixed, assert_same, cut

from acsp_lightning import load_pruned


@pytest.fixture
def pruned() -> Mixed:
    torch.manual_seed(0)
    model = Mixed().eval()
    cut(model)
    return model


def test_the_file_shrinks_a_fresh_model(pruned: Mixed, tmp_path: Path) -> None:
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    assert_same(load_pruned(Mixed(), tmp_path / "weights.pt"), pruned)


def test_a_lightning_checkpoint_is_understood(pruned: Mixed, tmp_path: Path) -> None:
    torch.save({"state_dict": pruned.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    assert_same(load_pruned(Mixed(), tmp_path / "last.ckpt"), pruned)


def test_the_file_grows_a_pruned_model(pruned: Mixed, tmp_path: Path) -> None:
    whole = Mixed()
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    assert_same(load_pruned(pruned, tmp_path / "whole.pt"), whole)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="neither a Lightning checkpoint nor a state dict"):
        load_pruned(Mixed(), tmp_path / "list.pt")
