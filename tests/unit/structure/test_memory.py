"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, freed, returned = map(float, done.stdout.split())
    assert full > 200
    assert freed > 200  # or there is nothing to return
    assert returned < 0.2 * freed
