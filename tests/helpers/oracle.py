"""The truth about a cut, without the code under test: channels zeroed where consumers read them."""

import copy
from contextlib import ExitStack

import torch
from torch import nn

from acsp_lightning import apply_plan
from acsp_lightning.structure.groups import Tracing
from acsp_lightning.structure.plan import PruningPlan, SideCut, build_plan
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.verification import verify_groups
from helpers.networks import Case, randomized
from helpers.normed import norms_over_kept


def inputs_of(case: Case, seed: int = 1, batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, *case.shape, generator=generator, dtype=torch.float64),)


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return randomized(case.build())


def offered(model, inputs, **options) -> Tracing:
    return verify_groups(model, inputs, trace_groups(model, inputs, **options))


def random_plan(groups, seed: int) -> PruningPlan:
    """Keep a random number, at least one, of random channels of every group; drop at least one."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        number = int(torch.randint(1, group.width, (), generator=generator))
        order = torch.randperm(group.width, generator=generator)
        kept[group.name] = sorted(order[:number].tolist())
    return build_plan(groups, kept)


def masked_outputs(model: nn.Module, plan: PruningPlan, inputs) -> list[torch.Tensor]:
    """Outputs of the uncut ``model`` whose consumers are handed zeros in place of dropped channels.

    Norms that take all channels together take those that are kept.
    """

    def zeros(cut):
        def hook(module, arguments):
            values = arguments[0].clone()
            view = values.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            assert len(view) == cut.width
            view[[p for p in range(cut.width) if p not in cut.kept]] = 0
            return values

        return hook

    with ExitStack() as stack, norms_over_kept(model, plan), torch.no_grad():
        for cut in plan:
            if cut.side == "in":
                layer = model.get_submodule(cut.layer)
                stack.callback(layer.register_forward_pre_hook(zeros(cut)).remove)
        outputs = model(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_cut_is_masked(model: nn.Module, plan: PruningPlan, inputs, tolerance=1e-9) -> nn.Module:
    """Cut a copy, compare it with the oracle, and return it."""
    expected = masked_outputs(model, plan, inputs)
    cut = copy.deepcopy(model)
    apply_plan(cut, plan)
    with torch.no_grad():
        found = cut(*inputs)
    for a, b in zip(expected, found if isinstance(found, tuple) else [found], strict=True):
        assert torch.linalg.vector_norm(a - b) <= tolerance * (1 + torch.linalg.vector_norm(a))
    return cut


def portrait(model):
    """Everything about a model that inspection could disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, id(m), type(m), m.training, [list(getattr(m, hook)) for hook in hooks])
        for name, m in model.named_modules()
    ]
    sizes = [{k: v for k, v in vars(m).items() if type(v) is int} for m in model.modules()]
    tensors = [
        (name, id(t), t.requires_grad, t._version if isinstance(t, nn.Parameter) else None, id(t.grad))
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return modules, sizes, tensors


def state(model):
    """Identity, values and sizes of everything in a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors],
        [tensor.detach().clone() for _, tensor in tensors],
        [(m.training, {k: v for k, v in vars(m).items() if type(v) is int}) for m in model.modules()],
    )


def assert_same_state(a, b):
    assert a[0] == b[0]
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert a[2] == b[2]


def good_cuts():
    return (
        SideCut("0", "out", 8, (0, 1, 5)),
        SideCut("1", "out", 8, (0, 1, 5)),
        SideCut("3", "in", 8, (0, 1, 5)),
    )
