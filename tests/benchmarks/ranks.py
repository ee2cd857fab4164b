"""Many ranks: memory and time of merging and of weighing, ResNet-50 with 1000 classes, made-up moments.

    python tests/benchmarks/ranks.py --out OUT

Processes of a gloo group on this machine, each with moments of its own. Beside the seconds, which tell
little where processes share cores, stand those of the processor on the rank that works most. Memory is
what the worst rank takes beyond its own statistics; rank 0 keeps all results. For Linux.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cutting import made_up
from measuring import record
from torchvision.models import resnet50

from acsp_lightning import SelectionConfig
from acsp_lightning.selection.weighing import weigh_groups
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.trainer.merging import merge_over_ranks
from acsp_lightning.trainer.ranks import spread

RANKS = [1, 2, 4, 8]


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a work gives, its seconds, those of the processor, and the memory that it took in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before, start, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    found = {"s": time.perf_counter() - start, "CPU s": time.process_time() - cpu}
    return result, {**found, "MB": (_memory("VmHWM") - before) / 2**10}


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def one_rank(rank: int, ranks: int, port: int, grid: int, class_pairs: int | None) -> dict[str, Any]:
    """What one rank takes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = resnet50().eval()
    groups = trace_groups(model, (torch.randn(2, 3, 64, 64),)).groups
    torch.manual_seed(rank)
    own = made_up(groups, grid)
    state = sum(t.nbytes for s in own.outputs.values() for t in (s.origin, s.total, s.squares))
    state += sum(inputs.held.nbytes for inputs in own.inputs.values())
    dist.barrier()
    merged, merging = measured(lambda: merge_over_ranks(lambda: own, torch.device("cpu")))
    config = SelectionConfig(flops=0.5, grid=grid, class_pairs=class_pairs)
    dist.barrier()
    _, weighing = measured(lambda: weigh_groups(model, groups, merged, config, spread=spread))
    dist.destroy_process_group()
    return {"state": state / 2**20, "merging": merging, "weighing": weighing}


def case(ranks: int, grid: int, class_pairs: int | None) -> dict[str, Any]:
    """One row: the worst of all ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--grid", grid, "--class-pairs", class_pairs or 0]
    commands = [
        [sys.executable, __file__, "--rank", rank, "--ranks", ranks, "--port", port, *options]
        for rank in range(ranks)
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a rank of {ranks} failed; its error is above")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]

    def worst(step: str, what: str, of: slice = slice(None)) -> float:
        return max((one[step][what] for one in found[of]), default=0.0)

    return {
        "ranks": ranks,
        "grid": grid,
        "state MB": found[0]["state"],
        "merge s": worst("merging", "s"),
        "merge CPU s": worst("merging", "CPU s"),
        "merge MB": worst("merging", "MB"),
        "weigh s": worst("weighing", "s"),
        "weigh CPU s": worst("weighing", "CPU s"),
        "rank 0 MB": worst("weighing", "MB", slice(1)),
        "others MB": worst("weighing", "MB", slice(1, None)),
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--numbers", type=int, nargs="+", default=RANKS, help="of ranks")
    parser.add_argument("--grid", type=int, default=1)
    parser.add_argument("--class-pairs", type=int, default=49_950, help="to compare; 0: all")
    parser.add_argument("--rank", type=int, help="one of --ranks, as JSON")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    pairs = options.class_pairs or None
    if options.rank is not None:
        row = one_rank(options.rank, options.ranks, options.port, options.grid, pairs)
        print(json.dumps(row))
        return
    record(options.out, "ranks", [case(ranks, options.grid, pairs) for ranks in options.numbers])


if __name__ == "__main__":
    main()
