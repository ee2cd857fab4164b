"""Ranks wait for each other as long as one of them works, which no collective would allow them.

A collective has a time limit, after which it ends the job, and what one rank does alone while the others
wait may take longer. So they wait before the collective, by looking into the store through which the
processes found each other; it has no part in training, and costs a message for each look.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Protocol

import torch.distributed as dist

# Seconds without any sign of life after which the rest of the ranks is given up: what torch.distributed
# allows a collective by default. Before they work for others, ranks may validate shares of other sizes.
SILENCE = 1800.0

BEAT = 1.0  # seconds between two signs of life

# Seconds between two looks: at first and, because every rank asks the same store, at last.
FIRST_LOOK, LAST_LOOK = 0.001, 0.1

ARRIVALS, BEATS = "arrivals", "beats"


class Counters(Protocol):
    """Numbers by name that all ranks share, as a store of torch.distributed has them."""

    def add(self, name: str, amount: int, /) -> int:
        """Add to a number, at first 0, and return the sum."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of a process group wait for each other, any number of times.

    Attributes:
        store: used for nothing else.
        rank: of this process.
        ranks: their number.
    """

    store: Counters
    rank: int
    ranks: int

    @classmethod
    def of_all(cls) -> "Meeting":
        """That of all processes of the run."""
        # The name counts the groups of a process: one that failed leaves counts behind.
        group: Any = dist.group.WORLD
        store = dist.distributed_c10d._get_default_store()
        named = dist.PrefixStore(f"acsp_lightning/{group.group_name}", store)  # type: ignore[attr-defined]
        return cls(named, dist.get_rank(), dist.get_world_size())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Give signs of life to those who wait, while the context is open."""
        done = Event()

        def beat() -> None:
            # Without the store there is nobody left to tell, and the next look at it says so.
            with suppress(RuntimeError):
                while not done.wait(BEAT):
                    self.store.add(BEATS, 1)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def wait(self) -> None:
        """Wait until every rank has come here as often as this one.

        Raises:
            RuntimeError: if for :data:`SILENCE` nobody who is missing has come or given a sign of life.
        """
        turn = self.store.add(_turn(self.rank), 1)
        arrived = self.store.add(ARRIVALS, 1)
        pause, seen, since = FIRST_LOOK, (0, 0), time.monotonic()
        # No rank comes again before all have come, so the sum of their turns tells.
        while arrived < turn * self.ranks:
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)
            arrived = self.store.add(ARRIVALS, 0)
            known = (arrived, self.store.add(BEATS, 0))
            if known != seen:
                seen, since = known, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                missing = [r for r in range(self.ranks) if self.store.add(_turn(r), 0) < turn]
                raise RuntimeError(
                    f"Rank {', '.join(map(str, missing))} gave no sign of life for {SILENCE:.0f} s "
                    f"while rank {self.rank} waited. Its process was killed or hangs: see its output "
                    "and start the job again from the last checkpoint."
                )


def _turn(rank: int) -> str:
    return f"turn/{rank}"
