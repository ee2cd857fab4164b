from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.structure.restoring import MOST, state_restored

CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], None]]] = {
    "dict": (lambda: {"a": 1}, lambda held, x: held.update(a=x, b=x)),
    "ordered": (lambda: OrderedDict(a=1, b=2), lambda held, x: held.move_to_end("a")),
    "default": (lambda: defaultdict(list, a=[1]), lambda held, x: held["b"].append(x)),
    "counter": (lambda: Counter(a=2), lambda held, x: held.update("ab")),
    "list": (lambda: [1, 2], lambda held, x: held.insert(0, x)),
    "set": (lambda: {1, 2}, lambda held, x: held.symmetric_difference_update({2, 3})),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda held, x: held.append(x)),
    "nested": (lambda: {"a": [{"b": [1]}]}, lambda held, x: held["a"][0]["b"].append(x)),
    "in a tuple": (lambda: ([1], {}), lambda held, x: held[1].update(a=x)),
}


class Hoarder(nn.Module):
    """Writes what it is given into what it holds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make, self.write = CONTAINERS[kind]
        self.held = make()

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.held, x)
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_hold_what_they_held(kind: str, fails: bool) -> None:
    module = Hoarder(kind)
    held, expected = module.held, CONTAINERS[kind][0]()

    def look() -> None:
        with state_restored(nn.Sequential(module)):
            module(torch.ones(2))
            assert str(module.held) != str(expected)
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            look()
    else:
        look()
    assert module.held is held
    assert held == expected
    assert str(held) == str(expected)  # in the same order


def test_a_container_that_holds_itself() -> None:
    module = nn.Identity()
    module.held = [1]
    module.held.append(module.held)
    with state_restored(module):
        module.held.clear()
    assert module.held[0] == 1
    assert module.held[1] is module.held


def test_containers_of_spared_modules_keep_what_the_body_writes() -> None:
    model = nn.Sequential(Hoarder("dict"), Hoarder("dict"))
    with state_restored(model, but=[model[0]]):
        model(torch.ones(2))
    assert "b" in model[0].held
    assert model[1].held == {"a": 1}


def test_hooks_of_the_body_stay() -> None:
    model = nn.Sequential(nn.Identity())
    with state_restored(model):
        handle = model[0].register_forward_hook(lambda *_: None)
    assert len(model[0]._forward_hooks) == 1
    handle.remove()


def test_what_holds_data_of_the_user_is_not_copied() -> None:
    module = nn.Module()
    module.held, module.short = [list(range(100)) for _ in range(MOST // 100)], list(range(MOST))
    with state_restored(module):
        module.held[0].append(-1)
        module.short.append(-1)
    assert module.held[0][-1] == -1
    assert module.short == list(range(MOST))
