"""Several processes of one job, none of which may outlive a limit."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 120.0  # seconds
# Processes are forked from a clean one that has imported everything once: two imports at a time
# would take longer than the training.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning.pytorch", "acsp_lightning.callback"])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def exit_codes(
    number: int, target: Callable[..., None], folder: Path, *arguments: Any
) -> tuple[list[int | None], list[str]]:
    """Exit codes and outputs of processes, which are told their place, and a port in common.

    Args:
        number: of processes.
        target: called with the arguments, ``process`` and ``port``; a function of a module in helpers.
        folder: of files.
        arguments: of ``target``.
    """
    port = free_port()
    processes = [
        CONTEXT.Process(
            target=_redirected, args=(target, folder, arguments), kwargs={"process": place, "port": port}
        )
        for place in range(number)
    ]
    deadline = time.monotonic() + LIMIT
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [place for place, process in enumerate(processes) if process.exitcode is None]
    finally:
        for process in processes:
            with suppress(ValueError, AttributeError):  # of one that has never started
                process.kill()
                process.join()
    outputs = [(folder / f"output{place}.txt").read_text() for place in range(number)]
    assert not hung, f"ranks {hung} hang:\n" + "\n".join(outputs)
    return [process.exitcode for process in processes], outputs


def _redirected(
    target: Callable[..., None], folder: Path, arguments: Sequence[Any], *, process: int, port: int
) -> None:
    output = os.open(folder / f"output{process}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    target(*arguments, process=process, port=port)


def on_ranks(number: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work`` returns on each of several ranks of a gloo group."""
    codes, outputs = exit_codes(number, _as_rank, folder, number, work, folder, arguments)
    assert codes == [0] * number, "\n".join(outputs)
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(number)]


def _as_rank(
    number: int,
    work: Callable[..., Any],
    folder: Path,
    arguments: Sequence[Any],
    *,
    process: int,
    port: int,
) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=process, world_size=number)
    torch.save(work(*arguments), folder / f"found{process}.pt")
    dist.destroy_process_group()
