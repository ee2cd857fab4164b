"""The dispatcher: what a subcommand needs is imported when it is called."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

# Subcommands that need neither a Trainer nor a configuration, and their modules.
COMMANDS: Mapping[str, str] = {
    "report": "acsp_lightning.cli.report",
    "export": "acsp_lightning.cli.export",
    "recipe": "acsp_lightning.cli.recipe",
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs one subcommand: fit, validate, test, predict, preview, report, export or recipe.

    Args:
        args: what would follow the program's name; None reads ``sys.argv``.
    """
    words = sys.argv[1:] if args is None else list(args)
    if words and words[0] in COMMANDS:
        import_module(COMMANDS[words[0]]).main(words[1:])
        return
    from acsp_lightning.cli.lightning_cli import command_line

    epilog = f"Without a configuration: acsp-lightning {{{','.join(COMMANDS)}}} --help"
    command_line(None if args is None else words, epilog=epilog)
