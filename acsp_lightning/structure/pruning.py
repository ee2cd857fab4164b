"""One cut of a live network: sliced, recovered and checked, or put back as it was."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.fitted import unsliced_parameters
from acsp_lightning.structure.fold import recover_consumers
from acsp_lightning.structure.forward import output_tensors, run_forward
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.refit import Refit, refit_layers
from acsp_lightning.structure.surgery import SlicedParameter, check_plan, reversible_cut


@dataclass(frozen=True, slots=True)
class Recovery:
    """What layers recover with from a cut.

    Attributes:
        example: arguments of forward, to try the network with after the cut.
        input_moments: second moments of their inputs, (D, D), by layer; None: nothing is folded.
        refit: samples, and what layers gave for them before the cut, on the process that fits; else
            None.
        refits: whether any process fits.
    """

    example: tuple[Any, ...]
    input_moments: Mapping[str, Tensor] | None
    refit: Refit | None
    refits: bool


def prune(
    model: nn.Module,
    plan: PruningPlan,
    inputs: tuple[Any, ...] | None,
    *,
    groups: Sequence[ChannelGroup] = (),
    input_moments: Mapping[str, Tensor] | None = None,
    refit: Refit | None = None,
) -> tuple[SlicedParameter, ...]:
    """Cut ``model`` in place, let it recover, and check that forward still works.

    Args:
        model: the network.
        plan: what to keep.
        inputs: example arguments of ``forward``; None: forward is not tried.
        groups: the groups that the plan was built from; needed for the recovery.
        input_moments: second moments of the consumers' inputs, by layer; None: nothing is folded into
            them.
        refit: samples, and what layers gave for them before the cut; None: none is fitted. Those that
            are need not be among the layers of the plan.

    Returns:
        One entry for every parameter that became smaller.

    Raises:
        ValueError: if the plan does not fit the model.
        RuntimeError: if forward fails after the cut, or returns outputs of another shape. The model is
            as it was, in both cases.
    """
    check_plan(model, plan)
    shapes = None if inputs is None else _output_shapes(model, inputs)
    try:
        with reversible_cut(model, plan) as sliced:
            if input_moments is not None:
                recover_consumers(model, plan, groups, sliced, input_moments)
            fitted = [] if refit is None else unsliced_parameters(model, plan, refit.later)
            with _put_back(fitted):
                if refit is not None:
                    refit_layers(model, plan, refit)
                found = None if inputs is None else _output_shapes(model, inputs)
                if found != shapes:
                    raise RuntimeError(f"it returns outputs of shape {found} instead of {shapes}")
    except Exception as error:
        layers = ", ".join(dict.fromkeys(cut.layer for cut in plan if cut.side == "out"))
        raise RuntimeError(
            f"{type(model).__name__} does not work after the cut of {layers}: {error}. It was put back "
            "as it was. If forward takes the width of these layers for granted, exclude them."
        ) from error
    return sliced


@contextmanager
def _put_back(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """If the body raises, parameters have the values that they had."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        raise


def _output_shapes(model: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[int, ...]]:
    with evaluation_state(model):
        return [tuple(output.shape) for output in output_tensors(run_forward(model, inputs))]
