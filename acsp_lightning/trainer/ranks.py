"""Several processes, one decision: what they share, and how they fail together."""

import io
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

MISSING = "missing"


def is_distributed() -> bool:
    """Whether other processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_rank_zero() -> bool:
    """Whether this process is the first, or the only one."""
    return not is_distributed() or dist.get_rank() == 0


def gather(value: T) -> list[T]:
    """``value`` of every rank, in the order of ranks, on every rank: one collective call.

    Tensors arrive on the CPU, whatever device of whichever rank they were on. A single process gets
    its own ``value`` back as it is.
    """
    if not is_distributed():
        return [value]
    packed: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(packed, _packed(value))
    return [torch.load(io.BytesIO(p), map_location="cpu", weights_only=False) for p in packed]


def _packed(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def run_on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Do ``work`` on every rank and share the results; if it fails on one rank, it fails on all.

    Without this, the ranks that did not fail would wait for the others in the next collective.

    Raises:
        RuntimeError: on ranks whose own work went well, if it failed elsewhere: names the rank and its
            error.
    """
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    outcomes = gather((result, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise RuntimeError(f"Pruning failed on rank {rank}: {message}")
    return [outcome for outcome, _ in outcomes]


def on_rank_zero(work: Callable[[], T]) -> T:
    """Do ``work`` on rank 0 alone and give its result to all; if it fails, it fails on all ranks."""
    return run_on_all_ranks(lambda: work() if is_rank_zero() else None)[0]  # type: ignore[return-value]


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Let every rank have rank 0's values in tensors, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def check_ranks_agree(work: Callable[[], Mapping[str, T]]) -> Mapping[str, T]:
    """Do ``work`` on every rank and raise on all of them unless it gave all the same named values.

    Raises:
        RuntimeError: names the first thing that differs, with the value of each rank; or as
            :func:`run_on_all_ranks`.
    """
    outcomes = run_on_all_ranks(work)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome)
    for name in names:
        values = [outcome.get(name, MISSING) for outcome in outcomes]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"rank {rank}: {reprlib.repr(v)}" for rank, v in enumerate(values))
            raise RuntimeError(
                f"The processes disagree on {name!r} ({listed}); nothing was cut. All ranks must train "
                "the same network."
            )
    return outcomes[0]
