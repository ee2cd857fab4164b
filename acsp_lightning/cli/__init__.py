"""The command line: one module for each subcommand, and a dispatcher."""

from acsp_lightning.cli.main import main

__all__ = ["main"]
