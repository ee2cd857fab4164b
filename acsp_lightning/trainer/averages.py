"""Averages of the weights that Lightning's own callbacks keep (EMA, SWA)."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.evaluation import is_compiled
from acsp_lightning.trainer.checks import callbacks_of, parameter_shapes


def averages_of(holder: object) -> list[nn.Module]:
    """The copy of the module whose weights a callback of Lightning's averages, if it is such a one."""
    if isinstance(holder, WeightAveraging) and holder._average_model is not None:
        return [holder._average_model.module]
    if isinstance(holder, StochasticWeightAveraging) and holder._average_model is not None:
        return [holder._average_model]
    return []


def averaged_copies(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """The copies of the module whose weights Lightning's own callbacks average."""
    return (average for callback in callbacks_of(trainer) for average in averages_of(callback))


def evaluated_network(trainer: pl.Trainer) -> nn.Module:
    """The network whose weights validation sees: the average that WeightAveraging swaps in, if any.

    A compiled module shares its compiled callables with its copy, which would run the weights of the
    module; then it is the module itself.
    """
    average = _swapped_in(trainer)
    return trainer.lightning_module if average is None or is_compiled(average) else average


def evaluated_copy(trainer: pl.Trainer) -> nn.Module:
    """A copy of the module, with the weights that validation sees and checkpoints have first."""
    copy = eager_copy(trainer.lightning_module)
    average = _swapped_in(trainer)
    if average is not None:
        copy.load_state_dict(average.state_dict())
    return copy


def evaluated_state(trainer: pl.Trainer) -> dict[str, Any]:
    """The state dict of :func:`evaluated_copy`, without a copy."""
    average = _swapped_in(trainer)
    network = trainer.lightning_module if average is None else average
    state: dict[str, Any] = network.state_dict()
    return state


def _swapped_in(trainer: pl.Trainer) -> nn.Module | None:
    """The average that takes the place of the module in validation, if there is one."""
    swapping = (c for c in callbacks_of(trainer) if isinstance(c, WeightAveraging))
    return next((average for callback in swapping for average in averages_of(callback)), None)


def check_averages(trainer: pl.Trainer) -> None:
    """Raise ``ValueError`` if an averaging callback copied the module before its network was built."""
    names = parameter_shapes(trainer.lightning_module).keys()
    for callback in callbacks_of(trainer):
        for copy in averages_of(callback):
            there = parameter_shapes(copy)
            lacking = next((name for name in names if name not in there), None)
            if lacking is not None:
                early = " or configure_model()" if isinstance(callback, WeightAveraging) else ""
                raise ValueError(
                    f"{type(callback).__name__} averages {'a part' if there else 'nothing'}: it copied "
                    f"{type(copy).__name__} before {lacking!r} was built, in setup() or later. Build "
                    f"the network in __init__{early}."
                )


def ends_averaged(trainer: pl.Trainer) -> bool:
    """Whether the weights that a fit leaves behind are averaged, though validation saw others."""
    return any(
        isinstance(callback, StochasticWeightAveraging) and bool(averages_of(callback))
        for callback in callbacks_of(trainer)
    )
