"""All benchmarks, one after the other, each in a process of its own.

    python tests/benchmarks/run.py --out OUT
    python tests/benchmarks/run.py --out OUT separation sweep

Each prints what it measured, in ratios of one run, and writes JSON and images to OUT. They need an
otherwise idle machine and more than an hour, of which latency takes most, and are no part of the tests.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ["separation", "sweep", "capturing", "cutting", "deciding", "wide", "ranks", "speed", "latency"]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no benchmark {min(unknown)!r}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        subprocess.run([sys.executable, FOLDER / f"{name}.py", "--out", options.out], check=True)


if __name__ == "__main__":
    main()
