"""``acsp-lightning report``: the page and the plots of every cut of a run, drawn again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from acsp_lightning.report import draw_step, find_records, read_step


def main(arguments: Sequence[str]) -> None:
    """Draw the plots and pages of the cuts of a run again."""
    parser = argparse.ArgumentParser(
        prog="acsp-lightning report",
        description="Draws the plots and the page of every cut of a run again, from its report.json.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run or of a cut, or a report.json"
    )
    options = parser.parse_args(arguments)
    try:
        records = find_records(options.run)
    except OSError as error:
        parser.error(str(error))
    failed = []
    for record in records:
        try:
            print(draw_step(read_step(record), record.parent))
        except (OSError, ValueError) as error:
            failed.append(str(error))
        except Exception as error:
            failed.append(f"{record} cannot be drawn ({type(error).__name__}: {error}).")
    if failed:
        parser.error("\n".join(failed))
