"""The clock in a fit: the network before and after a cut, timed on the first process alone."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from acsp_lightning.latency import LatencyComparison, compare_latency
from acsp_lightning.ranks import decided_on_first, is_first
from acsp_lightning.structure.forward import eager_copy


def uncut_copy(module: nn.Module, batch_sizes: Sequence[int]) -> nn.Module | None:
    """A copy of the network that is about to be cut, to be timed afterwards.

    Args:
        module: the network.
        batch_sizes: of the passes to be timed.

    Returns:
        The copy; None if there is nothing to time, on all processes but the first, and where copying
        fails, of which a warning tells.
    """
    if not batch_sizes or not is_first():
        return None
    try:
        return eager_copy(module)
    except Exception as error:
        _warn(error)
        return None


def time_cut(
    uncut: nn.Module | None, module: nn.Module, inputs: tuple[Any, ...], batch_sizes: Sequence[int]
) -> tuple[LatencyComparison, ...]:
    """Time a cut network against what it was, while the other processes wait.

    Args:
        uncut: from :func:`uncut_copy`.
        module: the network after the cut; left as it was.
        inputs: arguments of forward, for any number of samples.
        batch_sizes: of the passes to be timed.

    Returns:
        One comparison for each batch size, the same on every process; none where timing fails, of
        which a warning tells.
    """

    def work() -> tuple[LatencyComparison, ...]:
        if uncut is None:
            return ()
        try:
            with isolate_rng():
                return compare_latency(uncut, module, inputs, batch_sizes)
        except Exception as error:
            _warn(error)
            return ()

    return decided_on_first(work) if batch_sizes else ()


def _warn(error: Exception) -> None:
    rank_zero_warn(
        f"The latency of the network could not be measured ({type(error).__name__}: {error}). Pruning "
        "goes on without it; leave latency_batch_sizes empty to measure none."
    )
