"""The dispatcher: a subcommand is imported when it is called."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from acsp_lightning.cli.refusals import PROGRAM, RefusalError, refusals_reported

TRAINER = "acsp_lightning.cli.lightning_cli"
# By subcommand: its module, and what it does.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "fit": (TRAINER, "train and prune a network, then test it"),
    "validate": (TRAINER, "measure a network on the validation data"),
    "test": (TRAINER, "measure a network on the test data"),
    "predict": (TRAINER, "run a network on the prediction data"),
    "preview": (TRAINER, "show what a cut would do, and change nothing"),
    "profile": (TRAINER, "time a network on this machine, for a cut that is decided on another"),
    "report": ("acsp_lightning.cli.report", "draw the pages and plots of a run again"),
    "export": ("acsp_lightning.cli.export", "write a network for other programs, with a card"),
    "recipe": ("acsp_lightning.cli.recipe", "list the recipes of the package, or copy one"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one subcommand: fit, validate, test, predict, preview, profile, report, export or recipe.

    Classes are looked for in the current directory too, as ``python -m`` does.

    Args:
        args: command-line arguments; None reads ``sys.argv``.

    Raises:
        SystemExit: with status 2, after one error message, if something is refused.
    """
    words = sys.argv[1:] if args is None else list(args)
    if words[:1] in (["-h"], ["--help"]):
        print(_help())
        raise SystemExit(0)
    if words[:1] == ["--version"]:
        print(f"{PROGRAM} {version(PROGRAM)}")
        raise SystemExit(0)
    here = str(Path.cwd())  # and not "", since configurations are read from within their own folders
    if here not in sys.path:
        sys.path.insert(0, here)
    name = words[0] if words and words[0] in COMMANDS else ""
    with refusals_reported(name):
        if not name and not (words and words[0].startswith("-")):
            said = f"there is no subcommand {words[0]!r}" if words else "no subcommand was given"
            raise RefusalError(f"{said}; there are {', '.join(COMMANDS)}.")
        module = COMMANDS[name][0] if name else TRAINER
        import_module(module).main(words if module == TRAINER else words[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} SUBCOMMAND ...",
            "",
            "Structured pruning that decides by itself, inside a Lightning job.",
            "",
            *(f"  {name:{width}}  {words}" for name, (_, words) in COMMANDS.items()),
            "",
            f"{PROGRAM} SUBCOMMAND --help says more of each, {PROGRAM} --version which this is.",
            "",
            f"  {PROGRAM} fit --config recipes/digits_vgg.yaml --trainer.callbacks.selection.flops 0.5",
            f"  {PROGRAM} preview --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt --keep 0.5",
        ]
    )
