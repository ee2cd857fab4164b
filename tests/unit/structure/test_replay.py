from collections import Counter

import pytest
import torch
from helpers.networks import Wired
from helpers.oracle import portrait
from torch import nn

from acsp_lightning.structure.replay import part_of_forward, record_forward


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.act(self.conv(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *(Block(4) for _ in range(4)), nn.Flatten(), nn.Linear(400, 2)
    )


INPUTS = (torch.randn(2, 3, 12, 12),)


def run_counting(model: nn.Module, run) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """What was computed, and what every layer made."""
    calls: Counter[str] = Counter()
    outputs: dict[str, torch.Tensor] = {}

    def note(name):
        def hook(module, _arguments, output) -> None:
            if "forward" not in vars(module):
                calls[name] += 1
            outputs[name] = output.detach().clone()

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return calls, outputs


def test_only_what_lies_between_the_layers_is_computed() -> None:
    model = network().eval()
    before = portrait(model)
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
    run = part_of_forward(model, INPUTS, recording, {"2.conv", "3.conv"})
    calls, outputs = run_counting(model, run)
    assert set(calls) == {"2", "2.conv", "2.act", "3.conv"}
    _, whole = run_counting(model, lambda: model(*INPUTS))
    assert torch.equal(outputs["3.conv"], whole["3.conv"])
    assert portrait(model) == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_changes_in_between_shows() -> None:
    model = network().eval()
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
        run = part_of_forward(model, INPUTS, recording, {"2.conv", "3.conv"})
        model[2].conv.weight.mul_(2)
    _, outputs = run_counting(model, run)
    _, whole = run_counting(model, lambda: model(*INPUTS))
    assert torch.equal(outputs["3.conv"], whole["3.conv"])


def test_layers_called_twice_are_not_replayed() -> None:
    model = Wired(
        lambda net, x: net.b(net.twice(net.twice(x))), twice=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1)
    ).eval()
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
    assert set(recording.begins) == set(recording.ends) == {"", "b"}
    calls, _ = run_counting(model, part_of_forward(model, INPUTS, recording, {"b"}))
    assert calls == {"twice": 2, "b": 1}


def test_hooks_of_others_that_change_outputs_change_them_once() -> None:
    model = network().eval()
    model[0].register_forward_hook(lambda _module, _arguments, output: 2 * output)
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
    _, outputs = run_counting(model, part_of_forward(model, INPUTS, recording, {"3.conv"}))
    _, whole = run_counting(model, lambda: model(*INPUTS))
    assert torch.equal(outputs["3.conv"], whole["3.conv"])


def test_a_forward_of_the_users_own_is_put_back() -> None:
    model = network().eval()
    own = model[0].forward
    model[0].forward = own
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
        part_of_forward(model, INPUTS, recording, {"3.conv"})()
    assert vars(model[0])["forward"] is own


def test_errors_pass_and_leave_nothing_behind() -> None:
    model = network().eval()
    with torch.no_grad():
        recording = record_forward(model, INPUTS)
    before = portrait(model)
    run = part_of_forward(model, INPUTS, recording, {"2.conv", "3.conv"})
    width, model[2].conv.weight.data = model[2].conv.weight.data, torch.zeros(4, 5, 3, 3)
    with torch.no_grad(), pytest.raises(RuntimeError):
        run()
    model[2].conv.weight.data = width
    assert portrait(model) == before
    assert not any("forward" in vars(module) for module in model.modules())
