"""Errors of a subcommand: a message and exit status 2; unexpected errors keep their traceback."""

import argparse
import dis
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

PROGRAM = "acsp-lightning"
# Packages that validate users' input and say what is wrong with it.
CHECKING = ("acsp_lightning", "lightning", "jsonargparse", "torch.optim")
# Hooks in which users' code looks for its data, before anything is computed.
PREPARING = ("prepare_data", "setup", "train_dataloader", "val_dataloader", "test_dataloader")
# Errors that say that code is wrong, even if it raises them on purpose.
FAULTS = (AssertionError, AttributeError, LookupError, NameError, NotImplementedError)


class RefusalError(Exception):
    """An error that is shown to the user as a message, without a traceback."""


class Parser(argparse.ArgumentParser):
    """A parser that raises ``RefusalError``, without printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ``RefusalError``."""
        raise RefusalError(message)


@contextmanager
def refusals_reported(command: str) -> Iterator[None]:
    """Exit with ``PROGRAM COMMAND: error: MESSAGE`` and status 2 if something is refused."""
    try:
        yield
    except Exception as error:
        if not is_refusal(error):
            raise
        message = str(error).strip() or type(error).__name__
        print(f"{f'{PROGRAM} {command}'.strip()}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def is_refusal(error: Exception) -> bool:
    """Whether an error is about the user's input, and not a bug.

    It is if it is about a file, or was raised by a ``raise`` statement in one of the packages that
    validate users' input, or where the user's own classes look for their data.
    """
    if isinstance(error, RefusalError | OSError | argparse.ArgumentError | pickle.UnpicklingError):
        return True
    if isinstance(error, FAULTS) or not is_deliberate(error):
        return False
    frames = [trace.tb_frame for trace in _frames(error.__traceback__)]
    modules = [f"{frame.f_globals.get('__name__')}." for frame in frames]
    checking = [module.startswith(tuple(f"{name}." for name in CHECKING)) for module in modules]
    preparing = [frame.f_code.co_name in PREPARING for frame in frames]
    if any(hook and not own for hook, own in zip(preparing, checking, strict=True)):
        return True
    return checking[-1] and isinstance(error, _answers())


def is_deliberate(error: BaseException) -> bool:
    """Whether an error was raised by a ``raise`` statement, and not by an operation that failed."""
    *_, last = _frames(error.__traceback__)
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _answers() -> tuple[type[Exception], ...]:
    """Types of errors that such packages raise on purpose."""
    kinds = (ValueError, TypeError, ImportError)
    if "lightning.fabric" not in sys.modules:  # starting the command line does not need it
        return kinds
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (*kinds, MisconfigurationException)
