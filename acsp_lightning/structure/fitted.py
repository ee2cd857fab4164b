"""Which layers recovery may change: those that lost inputs, norms, and layers after them."""

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from acsp_lightning.structure.layers import normalises_all
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.sides import parsed
from acsp_lightning.structure.unfold import has_rows


def correctable_layers(model: nn.Module) -> list[str]:
    """Layers that may be fitted although they keep all inputs, which a cut before them has changed.

    Linear layers and convolutions that read all of their input. Left alone are layers with a frozen
    parameter, whose owner wants them as they are, and with one that belongs to other modules, too.
    """
    owners = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )

    def is_free(parameter: Tensor) -> bool:
        return parameter.requires_grad and owners[id(parameter)] == 1

    return [
        name
        for name, module in model.named_modules()
        if has_rows(module)
        and module._parameters.get("weight") is not None
        and all(map(is_free, module.parameters()))
    ]


def cut_layers(model: nn.Module, plan: PruningPlan) -> list[str]:
    """Layers that lost inputs or parameters of their own, and norms of all channels that lost some."""
    lost = {cut.layer for cut in plan if cut.side == "in" or parsed(cut.side)[0] == "parameter"}
    layers = dict.fromkeys(cut.layer for cut in plan)
    return [x for x in layers if x in lost or normalises_all(model.get_submodule(x))]


def fitted_layers(model: nn.Module, plan: PruningPlan, later: Iterable[str]) -> list[nn.Module]:
    """The layers whose parameters a refit may change; none without a cut.

    Args:
        model: the network, or a copy of it.
        plan: the cut.
        later: :func:`correctable_layers` of the network.
    """
    if not plan:
        return []
    names = dict.fromkeys([*cut_layers(model, plan), *later])
    return [model.get_submodule(name) for name in names]


def unsliced_parameters(model: nn.Module, plan: PruningPlan, later: Iterable[str]) -> list[nn.Parameter]:
    """What a refit may change and a cut does not slice, so that nothing else keeps it.

    The weights of layers that a cut touches are sliced; biases and gains may be left as they are.
    Arguments as in :func:`fitted_layers`.
    """
    touched = {model.get_submodule(cut.layer) for cut in plan}
    return [
        parameter
        for layer in fitted_layers(model, plan, later)
        for name, parameter in layer.named_parameters(recurse=False)
        if name != "weight" or layer not in touched
    ]
