"""What passes of a network note; no plain list or set, which a look at a network puts back."""

from typing import Any


class Log(list[Any]):
    """A list that keeps what passes append."""


class Seen(set[Any]):
    """A set that keeps what passes add."""
