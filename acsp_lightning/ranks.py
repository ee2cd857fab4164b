"""Several processes, one decision: what they share, and how they fail together."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether other processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(value: T) -> list[T]:
    """``value`` of every rank, in the order of ranks, on every rank: one collective call."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> list[T]:
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


def decided_on_first(work: Callable[[], T]) -> T:
    """Do ``work`` on rank 0 alone and give its result to all; if it fails, it fails on all ranks."""
    first = not is_distributed() or dist.get_rank() == 0
    return together(lambda: work() if first else None)[0]  # type: ignore[return-value]


def check_agreement(what: Iterable[tuple[str, object]]) -> None:
    """Raise on every rank unless all ranks hold the same named values.

    Args:
        what: (name, value) pairs in a fixed order; values are compared with ``==``.

    Raises:
        RuntimeError: names the first thing that differs, with the value of each rank.
    """
    mine = list(what)
    for rows in zip(*gather(mine), strict=False):
        if any(row != rows[0] for row in rows):
            values = ", ".join(f"rank {rank}: {value!r}" for rank, (_, value) in enumerate(rows))
            raise RuntimeError(
                f"The processes disagree on {rows[0][0]!r} ({values}); nothing was cut. All ranks must "
                "train the same network."
            )
