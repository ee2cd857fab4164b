"""Freed memory goes back to the system."""

import os
import platform
import subprocess
import sys

import pytest

from acsp_lightning.structure import memory

# Thousands of tensors, each too small to be given back by itself, below one that stays.
PROGRAM = """
import torch
from acsp_lightning.structure.memory import return_unused

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

start = held()
many = [torch.ones(2**14) for _ in range(4000)]
last = torch.ones(2**14)
full = held()
del many
freed = held()
return_unused()
print(full - start, freed - start, held() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such call")
def test_what_was_freed_goes_back_to_the_system() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    full, freed, returned = map(float, done.stdout.split())
    assert full > 200
    assert freed > 200  # or there is nothing to return
    assert returned < 0.2 * freed


@pytest.mark.parametrize("found", [OSError, AttributeError])
def test_elsewhere_it_does_nothing(found: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, name: None) -> None:
            if found is OSError:
                raise found

    monkeypatch.setattr(memory.ctypes, "CDLL", Library)
    memory._trim.cache_clear()
    memory.return_unused()
    monkeypatch.undo()
    memory._trim.cache_clear()
