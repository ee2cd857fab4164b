"""A display of progress that takes notes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Recorder:
    """Notes every step, and how far it came."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []

    @contextmanager
    def __call__(self, name: str, parts: int) -> Iterator[Callable[[], None]]:
        entry = [name, parts, 0]
        self.steps.append(entry)

        def advance() -> None:
            entry[2] += 1

        yield advance
