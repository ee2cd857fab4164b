import pytest
import torch
from helpers.structures import Ghost, Mixed
from torch import nn

from acsp_lightning import restore_structure
from acsp_lightning.structure.records import first_size, record_sizes, set_sizes, unknown_records


def cut(value: int = 6) -> nn.Sequential:
    model = nn.Sequential(Ghost(3, 8))
    before = {"out_chs": model[0].out_chs}
    model[0].out_chs = value
    record_sizes(model[0], before)
    return model


def test_a_record_has_what_is_and_what_was() -> None:
    model = cut()
    assert model.state_dict()["0.acsp_size_out_chs"].tolist() == [[6], [8]]
    assert first_size(model[0], "out_chs") == 8
    model[0].out_chs = 4
    record_sizes(model[0], {"out_chs": 6})
    assert model.state_dict()["0.acsp_size_out_chs"].tolist() == [[4], [8]]


def test_records_set_numbers_and_lists() -> None:
    fresh = nn.Sequential(Ghost(3, 8))
    set_sizes(fresh, cut().state_dict())
    assert fresh[0].out_chs == 6
    mixed = Mixed(5, 3)
    before = {"splits": mixed.splits}
    mixed.splits = [4, 1]
    record_sizes(mixed, before)
    fresh = Mixed(5, 3)
    set_sizes(fresh, mixed.state_dict())
    assert fresh.splits == [4, 1]


def test_without_a_record_a_number_is_what_it_was_at_first() -> None:
    model = cut()
    set_sizes(model, nn.Sequential(Ghost(3, 8)).state_dict())
    assert model[0].out_chs == 8
    assert "0.acsp_size_out_chs" not in model.state_dict()


def test_records_of_other_networks_are_refused() -> None:
    state = {"0.acsp_size_width": torch.tensor([[2], [4]]), **nn.Sequential(Ghost(3, 8)).state_dict()}
    assert unknown_records(nn.Sequential(Ghost(3, 8)), state) == ["0.acsp_size_width"]
    with pytest.raises(ValueError, match=r"only the file has '0\.acsp_size_width'"):
        restore_structure(nn.Sequential(Ghost(3, 8)), state)
