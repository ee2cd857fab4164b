"""What users are told meanwhile: how far a long step is, and which by-product failed."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

Advance = Callable[[], None]
"""To be called after each part."""

Display = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows a step of a name and a number of parts, 0 if it is unknown, while the context is open."""

_DISPLAY: ContextVar[Display | None] = ContextVar("acsp_lightning_display", default=None)


def step(name: str, parts: int) -> AbstractContextManager[Advance]:
    """A step of some parts, shown while the context is open if somebody shows steps."""
    display = _DISPLAY.get()
    return nullcontext(_ignore) if display is None else display(name, parts)


def tracked(items: Iterable[T], name: str) -> Iterator[T]:
    """The items one by one, each a part of a step."""
    with step(name, len(items) if isinstance(items, Sized) else 0) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def shown_by(display: Display | None) -> Iterator[None]:
    """Let ``display`` show the steps of the body; None: nobody shows them."""
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


def _ignore() -> None:
    """What advances where nobody looks."""


def warn_on_error(work: Callable[[], T], failed: str, advice: str) -> T | None:
    """The result of ``work``; where it fails, None and a warning: nothing ends because of a by-product.

    Args:
        work: may raise.
        failed: begins the warning; the error follows.
        advice: ends it.
    """
    try:
        return work()
    except Exception as error:
        warnings.warn(f"{failed} ({type(error).__name__}: {error}). {advice}", stacklevel=2)
        return None
