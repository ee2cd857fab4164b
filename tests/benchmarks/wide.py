"""A preview of VGG-16, whose layers are 4096 wide and read 25,088 inputs: its time, and the memory.

    python tests/benchmarks/wide.py --out OUT

32 made-up pictures of 96 px, so that the wide layers have far fewer rows than inputs.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from measuring import in_a_fresh_process, peak_bytes, record
from torchvision.models import vgg16

from acsp_lightning import preview


def case() -> dict[str, Any]:
    """One preview, in this process."""
    torch.manual_seed(0)
    model, images, labels = vgg16(num_classes=10).eval(), torch.randn(32, 3, 96, 96), torch.arange(32)
    start = time.perf_counter()
    with torch.no_grad():
        model(images)
    plain, before = time.perf_counter() - start, peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few samples decide by the damage
        step = preview(model, [(images, labels % 10)])
    return {
        "network": "VGG-16, 96 x 96",
        "plain pass s": plain,
        "preview s": time.perf_counter() - start,
        "of CPU": time.process_time() - cpu,
        "FLOPs": step.before.flops / step.after.flops,
        "before MB": before / 2**20,
        "peak MB": peak_bytes() / 2**20,
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--alone", action="store_true", help="in this process, as JSON")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(case()))
        return
    record(options.out, "wide", [in_a_fresh_process(__file__, "--alone")])


if __name__ == "__main__":
    main()
