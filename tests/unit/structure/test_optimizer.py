import copy
from functools import partial

import pytest
import torch
from helpers.networks import plain, randomized
from helpers.oracle import offered, random_plan
from torch import nn, optim

from acsp_lightning import apply_plan
from acsp_lightning.structure.optimizer import (
    correct_weights,
    nested_optimizers,
    slice_optimizer_state,
)

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

SLICED = {
    "sgd": partial(optim.SGD, lr=0.01),
    "momentum": partial(optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=0.01),
    "adamw_amsgrad": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.01),
    "nadam": partial(optim.NAdam, lr=0.01),
    "radam": partial(optim.RAdam, lr=0.01),
    "rprop": partial(optim.Rprop, lr=0.01),
    "adadelta": partial(optim.Adadelta),
    "adamax": partial(optim.Adamax, lr=0.01),
    "asgd": partial(optim.ASGD, lr=0.01),
}


def loss(model):
    return model(X).square().mean()


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return randomized(plain()).train()


def plan_of(model, seed=0):
    return random_plan(offered(model, (X,)).groups, seed)


def hand_sliced(tensor, name, plan):
    """A tensor of the shape of a parameter of ``plain``, cut with plain indexing."""
    layer, _, kind = name.rpartition(".")
    rows, columns = plan.kept(layer, "out"), plan.kept(layer, "in")
    tensor = tensor if rows is None else tensor[list(rows)]
    return tensor if columns is None or kind == "bias" else tensor[:, list(columns)]


@pytest.mark.parametrize("name", SLICED)
def test_state_is_cut_like_the_parameters(name):
    model = network()
    optimizer = SLICED[name](model.parameters())
    train(model, optimizer, 3)
    plan = plan_of(model)
    names = {id(p): n for n, p in model.named_parameters()}
    order = [names[id(p)] for p in optimizer.param_groups[0]["params"]]
    shapes = {n: p.shape for n, p in model.named_parameters()}
    before = {names[id(p)]: copy.deepcopy(s) for p, s in optimizer.state.items()}
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}

    atomic_write = apply_plan(model, plan)
    assert slice_optimizer_state(optimizer, atomic_write) == ()

    assert [id(model.get_parameter(n)) for n in order] == list(
        map(id, optimizer.param_groups[0]["params"])
    )
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == settings
    assert len(optimizer.state) == len(before)
    for parameter_name, old in before.items():
        new = optimizer.state[model.get_parameter(parameter_name)]
        assert list(new) == list(old)
        for key, value in old.items():
            if isinstance(value, torch.Tensor) and value.shape == shapes[parameter_name]:
                value = hand_sliced(value, parameter_name, plan)
            same = (
                value is new[key]
                if value is None
                else torch.equal(torch.as_tensor(value), torch.as_tensor(new[key]))
            )
            assert same, (parameter_name, key)


@pytest.mark.parametrize("name", SLICED)
def test_training_goes_on_as_that_of_the_masked_network(name):
    """The next step is that of the whole network, in which what was cut away gets no gradient."""
    model = network()
    optimizer = SLICED[name](model.parameters())
    train(model, optimizer, 3)
    plan = plan_of(model)
    whole = copy.deepcopy(model)
    whole_optimizer = SLICED[name](whole.parameters())
    whole_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    slice_optimizer_state(optimizer, apply_plan(model, plan))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.zero_grad()
    loss(model).backward()
    for parameter_name, parameter in whole.named_parameters():
        # The gradient of the cut network, in the places that were kept.
        parameter.grad = torch.zeros_like(parameter)
        index = hand_sliced(torch.arange(parameter.numel()).view(parameter.shape), parameter_name, plan)
        parameter.grad.view(-1)[index] = model.get_parameter(parameter_name).grad
    optimizer.step()
    whole_optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        expected = hand_sliced(whole.get_parameter(parameter_name), parameter_name, plan)
        torch.testing.assert_close(parameter, expected, rtol=1e-7, atol=1e-9)
        if parameter.ndim > 1:
            assert not torch.equal(parameter, before[parameter_name]), parameter_name


def test_groups_keep_their_order_and_settings_and_others_are_untouched():
    model = network()
    others = nn.Linear(3, 3).double()
    optimizer = optim.Adam(
        [
            {"params": [model[10].weight, model[0].weight], "lr": 0.5},
            {"params": list(others.parameters()), "weight_decay": 0.1, "tag": "others"},
            {"params": [model[7].weight], "betas": (0.5, 0.6)},
        ],
        lr=0.01,
    )
    loss(model).backward()
    others(X[0, 0, :3, :3]).sum().backward()
    optimizer.step()
    bystanders = {id(p): copy.deepcopy(optimizer.state[p]) for p in others.parameters()}
    places = [id(p) for p in optimizer.param_groups[1]["params"]]
    slice_optimizer_state(optimizer, apply_plan(model, plan_of(model)))
    first, second, third = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(model[10].weight), id(model[0].weight)]
    assert [id(p) for p in second["params"]] == places
    assert [id(p) for p in third["params"]] == [id(model[7].weight)]
    assert (first["lr"], second["tag"], second["weight_decay"]) == (0.5, "others", 0.1)
    assert third["betas"] == (0.5, 0.6)
    assert len(optimizer.state) == 5  # nothing for the parameters it does not hold
    for parameter in others.parameters():
        for key, value in bystanders[id(parameter)].items():
            assert torch.equal(optimizer.state[parameter][key], value)


def test_parameters_without_state_yet():
    model = network()
    optimizer = optim.Adam(model.parameters())
    assert slice_optimizer_state(optimizer, apply_plan(model, plan_of(model))) == ()
    assert dict(optimizer.state) == {}
    train(model, optimizer, 1)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}


def test_two_cuts_in_a_row():
    model = network()
    optimizer = optim.Adam(model.parameters())
    for seed in (0, 3):
        train(model, optimizer, 2)
        groups = [g for g in offered(model, (X,)).groups if g.width > 2]
        assert slice_optimizer_state(optimizer, apply_plan(model, random_plan(groups, seed))) == ()
    train(model, optimizer, 1)
    steps = {float(state["step"]) for state in optimizer.state.values()}
    assert steps == {5.0}


def test_memory_format_of_moments():
    model = network().to(memory_format=torch.channels_last)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1)
    slice_optimizer_state(optimizer, apply_plan(model, plan_of(model)))
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == parameter.stride()


def test_state_dict_round_trip():
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    slice_optimizer_state(optimizer, apply_plan(model, plan_of(model)))
    twin = copy.deepcopy(model)
    fresh = optim.AdamW(twin.parameters(), lr=0.5)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, fresh, 2)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_and_closures_hold_the_same_object():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, 1)
    schedule.step()
    lists = [id(group["params"]) for group in optimizer.param_groups]
    slice_optimizer_state(optimizer, apply_plan(model, plan_of(model)))
    train(model, optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert [id(group["params"]) for group in optimizer.param_groups] == lists


def test_factored_state_is_dropped_by_name_and_grows_again():
    model = network()
    optimizer = optim.Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    plan = plan_of(model)
    vectors = {n: optimizer.state[model.get_parameter(n)]["variance"].clone() for n in ("1.weight",)}
    dropped = slice_optimizer_state(optimizer, apply_plan(model, plan))
    assert set(dropped) == {"0.weight", "3.weight", "7.weight", "10.weight"}
    kept = optimizer.state[model[1].weight]["variance"]
    assert torch.equal(kept, hand_sliced(vectors["1.weight"], "1.weight", plan))
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 2)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.state[model[0].weight]["row_var"].shape[0] == model[0].out_channels


@pytest.mark.parametrize("reverse", [False, True])
def test_lbfgs_starts_afresh(reverse):
    """Its one state hangs at the first parameter, here once one that is cut and once one that is not."""
    model = network()
    parameters = [p for n, p in model.named_parameters() if n != "10.weight"]
    parameters = parameters[::-1] if reverse else parameters
    optimizer = optim.LBFGS(parameters, lr=0.01, max_iter=3)

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)
    assert len(optimizer.state) == 1
    atomic_write = apply_plan(model, plan_of(model))
    dropped = slice_optimizer_state(optimizer, atomic_write)
    assert set(dropped) == {r.name for r in atomic_write} - {"10.weight"}
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    first = optimizer.step(closure).item()
    for _ in range(3):
        last = optimizer.step(closure).item()
    assert last < first
    assert any(
        not torch.equal(a, b) for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True)
    )


def test_lbfgs_of_other_parameters_is_left_alone():
    model, other = network(), nn.Linear(3, 1).double()
    optimizer = optim.LBFGS(other.parameters())
    optimizer.step(lambda: other(X[0, 0, :3, :3]).sum())
    assert slice_optimizer_state(optimizer, apply_plan(model, plan_of(model))) == ()
    assert len(optimizer.state) == 1


# -- optimizers that hold others, and what they hold beside their state --------------------------------


class Lookahead(optim.Optimizer):
    """Slow weights in one of the forms that are in use, around SGD with momentum."""

    def __init__(self, parameters, form):
        parameters = list(parameters)
        super().__init__(parameters, {"lr": 0.01})
        self.fast = optim.SGD(parameters, lr=0.01, momentum=0.9)
        slow = [p.detach().clone() for p in parameters]
        if form == "nested lists":
            self.slow = [slow]
        elif form == "list":
            self.slow = slow
        elif form == "dict":
            self.slow = dict(zip(parameters, slow, strict=True))
        elif form == "dict by id":
            self.slow = dict(zip(map(id, parameters), slow, strict=True))
        elif form == "group":
            self.param_groups[0]["slow"] = slow
        else:
            for parameter, value in zip(parameters, slow, strict=True):
                self.state[parameter]["slow"] = value
        self.form = form

    def slow_weights(self):
        parameters = self.param_groups[0]["params"]
        if self.form == "nested lists":
            return self.slow[0]
        if self.form == "dict":
            return [self.slow[p] for p in parameters]
        if self.form == "dict by id":
            return [self.slow[id(p)] for p in parameters]
        if self.form == "group":
            return self.param_groups[0]["slow"]
        return self.slow if self.form == "list" else [self.state[p]["slow"] for p in parameters]

    def step(self, closure=None):
        self.fast.step(closure)


@pytest.mark.parametrize("form", ["nested lists", "list", "dict", "dict by id", "group", "state"])
def test_slow_weights_and_the_momentum_of_a_wrapped_optimizer_are_cut_along(form):
    torch.manual_seed(0)
    model = randomized(plain())
    optimizer = Lookahead(model.parameters(), form)
    train(model, optimizer, 2)
    kept = [value.clone() for value in optimizer.slow_weights()]
    momenta = {
        n: optimizer.fast.state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()
    }
    sliced = {
        entry.name: entry for entry in apply_plan(model, random_plan(offered(model, (X,)).groups, 0))
    }
    assert sliced
    for one in nested_optimizers([optimizer]):
        slice_optimizer_state(one, sliced.values())
    for (name, parameter), before, after in zip(
        model.named_parameters(), kept, optimizer.slow_weights(), strict=True
    ):
        entry = sliced.get(name)
        assert torch.equal(after, before if entry is None else entry.slice(before)), name
        found = optimizer.fast.state[parameter]["momentum_buffer"]
        assert torch.equal(found, momenta[name] if entry is None else entry.slice(momenta[name])), name
    train(model, optimizer, 1)


@pytest.mark.parametrize("form", ["nested lists", "list", "dict", "dict by id", "group", "state"])
def test_slow_weights_are_corrected_as_the_parameters_were_and_momenta_are_not(form):
    torch.manual_seed(0)
    model = randomized(plain())
    optimizer = Lookahead(model.parameters(), form)
    train(model, optimizer, 2)
    slow = [value.clone() for value in optimizer.slow_weights()]
    momenta = [optimizer.fast.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    corrected = dict(list(model.named_parameters())[::2])
    corrections = {id(p): 0.1 * torch.randn_like(p) for p in corrected.values()}
    with torch.no_grad():
        for parameter in corrected.values():
            parameter += corrections[id(parameter)]
    correct_weights(nested_optimizers([optimizer]), corrections)
    for parameter, before, after in zip(model.parameters(), slow, optimizer.slow_weights(), strict=True):
        torch.testing.assert_close(after, before + corrections.get(id(parameter), 0.0))
    found = [optimizer.fast.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(map(torch.equal, found, momenta))


def test_weights_that_two_optimizers_show_are_corrected_once_and_aliases_never():
    layer = nn.Linear(3, 2, bias=False)
    optimizer, wrapper = (optim.SGD(layer.parameters(), lr=0.1) for _ in range(2))
    master, before = layer.weight.detach().clone(), layer.weight.detach().clone()
    optimizer.state[layer.weight]["master"] = master
    wrapper.state = optimizer.state
    wrapper.aliases = [layer.weight.detach()]
    correction = 0.1 * torch.ones(2, 3)
    with torch.no_grad():
        layer.weight += correction
    correct_weights([optimizer, wrapper], {id(layer.weight): correction})
    torch.testing.assert_close(master, before + correction)
    torch.testing.assert_close(layer.weight.detach(), before + correction)


def test_a_momentum_of_zero_beside_a_bias_of_zero_is_no_weight():
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.bias)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[layer.bias]["momentum_buffer"] = torch.zeros(2)
    with torch.no_grad():
        layer.bias += 1
    correct_weights([optimizer], {id(layer.bias): torch.ones(2)})
    assert not optimizer.state[layer.bias]["momentum_buffer"].any()


def test_optimizers_are_found_in_attributes_lists_and_dicts_once():
    parameters = [nn.Parameter(torch.zeros(2))]
    outer, one, other, third = (optim.SGD(parameters, lr=0.1) for _ in range(4))
    outer.base, outer.several, outer.named = one, [one, other], {"a": third, "b": outer}
    assert list(nested_optimizers([outer])) == [outer, one, other, third]


def test_state_that_a_wrapper_shows_too_is_cut_once():
    """As torch's PostLocalSGDOptimizer does, whose state is that of the optimizer in it."""

    class Wrapper(optim.Optimizer):
        def __init__(self, inner):
            self.optim = inner
            self.param_groups = inner.param_groups

        @property
        def state(self):
            return self.optim.state

    model = network()
    inner = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, inner, 1)
    sliced = apply_plan(model, plan_of(model))
    for optimizer in nested_optimizers([Wrapper(inner)]):
        assert slice_optimizer_state(optimizer, sliced) == ()
    for parameter in model.parameters():
        assert inner.state[parameter]["momentum_buffer"].shape == parameter.shape


def test_state_of_a_layout_of_its_own_is_dropped():
    """As of quantized moments, which no slice would follow."""

    class Quantized(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.index_select or func is torch.index_select:
                raise NotImplementedError("no slices")
            return super().__torch_function__(func, types, args, kwargs)

    model = network()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 1)
    sliced = apply_plan(model, plan_of(model))
    entry = next(entry for entry in sliced if entry.old.ndim == 4)
    optimizer.state[entry.parameter]["exp_avg"] = entry.old.clone().as_subclass(Quantized)
    assert slice_optimizer_state(optimizer, sliced) == (entry.name,)
    assert entry.parameter not in optimizer.state
    train(model, optimizer, 1)
