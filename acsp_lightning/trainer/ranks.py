"""Several processes, one decision: what they share, and how they fail together."""

import io
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from acsp_lightning.progress import tracked
from acsp_lightning.trainer.meeting import Meeting

T = TypeVar("T")

MISSING = "missing"


def is_distributed() -> bool:
    """Whether other processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_rank_zero() -> bool:
    """Whether this process is the first, or the only one."""
    return not is_distributed() or dist.get_rank() == 0


def number_of_ranks() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if is_distributed() else 1


def gather(value: T) -> list[T]:
    """``value`` of every rank, in the order of ranks, on every rank: one collective call.

    Tensors arrive on the CPU, whatever device of whichever rank they were on. A single process gets
    its own ``value`` back as it is. What all ranks hold of all ranks should be little: errors, counts.
    """
    if not is_distributed():
        return [value]
    packed: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(packed, _packed(value))
    return [_unpacked(found) for found in packed]


def from_rank(value: T, source: int) -> T:
    """The ``value`` of one rank on every rank; tensors arrive on the CPU."""
    if not is_distributed():
        return value
    own = dist.get_rank() == source
    box: list[Any] = [_packed(value) if own else None]
    dist.broadcast_object_list(box, src=source)
    return value if own else _unpacked(box[0])


def _packed(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=False)


def run_on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Do ``work`` on every rank and share the results; if it fails on one rank, it fails on all.

    Without this, the ranks that did not fail would wait for the others in the next collective. However
    long one of them works, the others wait for it outside of any.

    Raises:
        RuntimeError: on ranks whose own work went well, if it failed elsewhere: names the rank and its
            error.
    """
    error: Exception | None = None
    result: Any = None
    meeting = Meeting.of_all() if is_distributed() else None
    try:
        with nullcontext() if meeting is None else meeting.working():
            result = work()
    except Exception as caught:
        error = caught
    if meeting is not None:
        meeting.wait()
    outcomes = gather((result, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise RuntimeError(f"Pruning failed on rank {rank}: {message}")
    return [outcome for outcome, _ in outcomes]


def on_rank_zero(work: Callable[[], T]) -> T:
    """Do ``work`` on rank 0 alone and give its result to all; if it fails, it fails on all ranks."""
    results: list[T] = []

    def alone() -> None:
        if is_rank_zero():
            results.append(work())

    run_on_all_ranks(alone)
    return from_rank(results[0] if results else None, 0)  # type: ignore[return-value]


def to_rank_zero(value: T) -> list[T]:
    """``value`` of every rank, in the order of ranks, on rank 0, and nothing on the others.

    Tensors of other ranks arrive on the CPU. The ranks take turns, so that what this takes on the
    others does not grow with their number.

    Raises:
        RuntimeError: on all ranks, as :func:`run_on_all_ranks`, if a value cannot be pickled.
    """
    packed: list[bytes] = []
    run_on_all_ranks(lambda: None if is_rank_zero() else packed.append(_packed(value)))
    found = [value] if is_rank_zero() else []
    for source in range(1, number_of_ranks()):
        box: list[Any] = [packed[0] if dist.get_rank() == source else None]
        dist.broadcast_object_list(box, src=source)
        if is_rank_zero():
            found.append(_unpacked(box[0]))
    return found


def spread(name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
    """Do several works, each on one rank, all ranks at once; if one fails, it fails on all ranks.

    Args:
        name: of all of them together, as it is shown while they are done.
        works: the same on every rank.
        costs: about how much each takes, in any unit, at least 0.

    Returns:
        The results in order on rank 0, those of other ranks on the CPU; nothing on the others.
    """
    found: dict[int, T] = {}
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)

    def work() -> None:
        for place in tracked(evenly(costs, ranks)[rank], name):
            found[place] = works[place]()

    run_on_all_ranks(work)
    done = {place: result for part in to_rank_zero(found) for place, result in part.items()}
    return [done[place] for place in range(len(works))] if rank == 0 else []


def evenly(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Places of works in a number of shares of about the same cost: the dearest first, to the least.

    Ties go to the first share, so that every rank finds the same.
    """
    found: list[list[int]] = [[] for _ in range(shares)]
    sums = [0.0] * shares
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = sums.index(min(sums))
        found[least].append(place)
        sums[least] += costs[place]
    return [sorted(share) for share in found]


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
