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


class Twice(nn.Module):
    """Holds a network, and most of it under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Ghost(3, 8), nn.Linear(8, 2))
        self.part = nn.Sequential(self.net[0])


def test_records_under_any_name_of_a_module() -> None:
    model = Twice()
    before = {"out_chs": model.net[0].out_chs}
    model.net[0].out_chs = 6
    record_sizes(model.net[0], before)
    state = model.state_dict()
    names = ["net.0.acsp_size_out_chs", "part.0.acsp_size_out_chs"]
    assert [name for name in state if "acsp" in name] == names
    for kept in (names, names[:1], names[1:]):
        some = {n: value for n, value in state.items() if "acsp" not in n or n in kept}
        assert unknown_records(Twice(), some) == []
        set_sizes(fresh := Twice(), some)
        assert fresh.net[0].out_chs == 6
        set_sizes(model, some)
        assert model.part[0].out_chs == 6
    set_sizes(model, Twice().state_dict())
    assert model.net[0].out_chs == 8


def test_records_made_under_inference_mode_can_be_written_to() -> None:
    model, fresh = nn.Sequential(Ghost(3, 8)), nn.Sequential(Ghost(3, 8))
    with torch.inference_mode():
        model[0].out_chs = 6
        record_sizes(model[0], {"out_chs": 8})
        set_sizes(fresh, model.state_dict())
    for net in (model, fresh):
        assert not net[0].acsp_size_out_chs.is_inference()
        net.load_state_dict(cut(5).state_dict())
        assert net[0].acsp_size_out_chs.tolist() == [[5], [8]]


def test_records_of_other_networks_are_refused() -> None:
    state = {"0.acsp_size_width": torch.tensor([[2], [4]]), **nn.Sequential(Ghost(3, 8)).state_dict()}
    assert unknown_records(nn.Sequential(Ghost(3, 8)), state) == ["0.acsp_size_width"]
    with pytest.raises(ValueError, match=r"only the file has '0\.acsp_size_width'"):
        restore_structure(nn.Sequential(Ghost(3, 8)), state)
