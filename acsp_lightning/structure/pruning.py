"""One cut of a live network: sliced, recovered and checked, or put back as it was."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from acsp_lightning.structure.forward import evaluation_state, output_tensors, run_forward
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.recovery import recover_consumers
from acsp_lightning.structure.refit import Refit, refit_consumers
from acsp_lightning.structure.surgery import Replacement, check_plan, reversible_cut


def prune(
    model: nn.Module,
    plan: PruningPlan,
    inputs: tuple[Any, ...] | None,
    *,
    groups: Sequence[ChannelGroup] = (),
    input_moments: Mapping[str, Tensor] | None = None,
    refit: Refit | None = None,
) -> tuple[Replacement, ...]:
    """Cut ``model`` in place, let consumers recover, and check that forward still works.

    Args:
        model: the network.
        plan: what to keep.
        inputs: example arguments of ``forward``; None: forward is not tried.
        groups: the groups that the plan was built from; needed for the recovery.
        input_moments: second moments of the consumers' inputs, by layer; None: nothing is folded into
            them.
        refit: samples and what the consumers gave for them before the cut; None: they are not fitted.

    Returns:
        One entry for every parameter that was replaced.

    Raises:
        ValueError: if the plan does not fit the model.
        RuntimeError: if forward fails after the cut, or gives outputs of another shape. The model is
            as it was, in both cases.
    """
    check_plan(model, plan)
    shapes = None if inputs is None else _output_shapes(model, inputs)
    try:
        with reversible_cut(model, plan) as replacements:
            if input_moments is not None:
                recover_consumers(model, plan, groups, replacements, input_moments)
            if refit is not None:
                refit_consumers(model, plan, refit)
            found = None if inputs is None else _output_shapes(model, inputs)
            if found != shapes:
                raise RuntimeError(f"it gives outputs of shape {found} instead of {shapes}")
    except Exception as error:
        layers = ", ".join(dict.fromkeys(cut.layer for cut in plan if cut.side == "out"))
        raise RuntimeError(
            f"{type(model).__name__} does not work after the cut of {layers}: {error}. It was put back "
            "as it was. Exclude the layers whose width forward takes for granted."
        ) from error
    return replacements


def _output_shapes(model: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[int, ...]]:
    with evaluation_state(model):
        return [tuple(output.shape) for output in output_tensors(run_forward(model, inputs))]
