"""``acsp-lightning export``: export the network of a checkpoint to other formats, with a model card."""

from collections.abc import Sequence
from pathlib import Path

from acsp_lightning.cli.formats import FORMATS
from acsp_lightning.cli.refusals import Parser, RefusalError


def main(arguments: Sequence[str]) -> None:
    """Export the network of a checkpoint and write a model card beside the files.

    Args:
        arguments: what follows ``acsp-lightning export``.

    Raises:
        RefusalError: if that is not possible; or another error that says why.
    """
    parser = Parser(
        prog="acsp-lightning export",
        description="Writes the network of a checkpoint, pruned or not, for use without this package. "
        "Every file is read back and compared with the network; a model card describes both.",
        epilog="Arguments of the classes are given as --model.NAME=VALUE and --data.NAME=VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a Lightning checkpoint")
    parser.add_argument(
        "--to", nargs="+", required=True, choices=FORMATS, help="formats to write, one or more"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the YAML with model and data [the nearest config.yaml above CKPT]",
    )
    parser.add_argument(
        "--model",
        metavar="CLASS",
        help="import path of the LightningModule, for which CKPT or FILE has the arguments",
    )
    parser.add_argument(
        "--data", metavar="CLASS", help="import path of the LightningDataModule, likewise"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the files [that of CKPT]")
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="measure the accuracy on all validation samples for the card; else one batch is enough",
    )
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if not word.startswith(("--model.", "--data.")) or "=" not in word]
    if unknown:
        raise RefusalError(
            f"unknown: {' '.join(unknown)}. Arguments of the classes are --model.NAME=VALUE and "
            "--data.NAME=VALUE; all others are in --help."
        )
    # Imported only after the arguments are checked: this takes seconds.
    from acsp_lightning.cli.exporting import export

    for line in export(options, words=arguments, arguments=rest):
        print(line)
