import pytest
import torch
from torch import nn

from acsp_lightning.structure.aliases import all_names, under_first_names


def twice_named() -> nn.Module:
    model = nn.Module()
    model.whole = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)), nn.Linear(4, 5))
    model.part = nn.Sequential(*list(model.whole.children())[:-1])
    model.last = model.whole[2]
    return model


def test_every_module_has_its_first_name_and_the_others() -> None:
    names = all_names(twice_named())
    assert list(names) == [name for name, _ in twice_named().named_modules()]
    several = {first: others for first, (first, *others) in names.items() if others}
    assert several == {
        "whole.0": ["part.0"],
        "whole.1": ["part.1"],
        "whole.1.0": ["part.1.0"],
        "whole.2": ["last"],
    }


def test_a_state_dict_under_first_names_is_that_of_the_parameters() -> None:
    model = twice_named()
    state = model.state_dict()
    assert len(state) == 12
    found = under_first_names(model, {**state, "other.weight": torch.zeros(1)})
    assert list(found) == [*dict(model.named_parameters()), "other.weight"]
    partial = {name: value for name, value in state.items() if name.startswith("part.")}
    assert list(under_first_names(model, partial)) == [
        name for name, _ in model.named_parameters() if not name.startswith("whole.2.")
    ]


def test_two_shapes_of_one_layer_are_refused() -> None:
    model = twice_named()
    state = {**model.state_dict(), "part.0.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"Layer 'part\.0' .* 'whole\.0' .*\(2, 2\).*\(3, 2\)"):
        under_first_names(model, state)
