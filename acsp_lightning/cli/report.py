"""``acsp-lightning report``: draw the page and the plots of every cut of a run again."""

from collections.abc import Sequence
from pathlib import Path

from acsp_lightning.cli.refusals import Parser, RefusalError


def main(arguments: Sequence[str]) -> None:
    """Draw the plots and pages of the cuts of a run again."""
    parser = Parser(
        prog="acsp-lightning report",
        description="Draws the plots and the page of every cut of a run again, from its report.json.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run or of a cut, or a report.json"
    )
    options = parser.parse_args(arguments)
    # Imported only after the arguments are checked: this takes seconds.
    from acsp_lightning.report import draw_step, find_records, read_step

    failed = []
    for record in find_records(options.run):
        try:
            print(draw_step(read_step(record), record.parent))
        except (OSError, ValueError) as error:
            failed.append(str(error))  # the others are still drawn
    if failed:
        raise RefusalError("\n".join(failed))
