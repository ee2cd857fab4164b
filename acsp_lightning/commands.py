"""Subcommands that need neither a Trainer nor a configuration."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

Command = Callable[[Sequence[str]], None]


def report(arguments: Sequence[str]) -> None:
    """Draw the pictures and pages of the cuts of a run again."""
    from acsp_lightning.report import draw_step, find_records, read_step

    parser = argparse.ArgumentParser(
        prog="acsp-lightning report",
        description="Draws the pictures and the page of every cut of a run again, from its report.json.",
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


def recipe(arguments: Sequence[str]) -> None:
    """List the recipes of the package, or copy one to edit it."""
    parser = argparse.ArgumentParser(prog="acsp-lightning recipe", description="Recipes of the package.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all recipes, each with its first line")
    copy = commands.add_parser("copy", help="write a recipe to a file, to edit it")
    copy.add_argument("name", metavar="NAME", help="as in the list")
    copy.add_argument("file", metavar="FILE", nargs="?", type=Path, help="[NAME.yaml]")
    options = parser.parse_args(arguments)
    known = {entry.name.removesuffix(".yaml"): entry for entry in _recipes()}
    if options.command == "list":
        width = max(map(len, known))
        for name, entry in known.items():
            print(
                f"{name:{width}}  {entry.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}"
            )
        return
    if options.name not in known:
        parser.error(f"there is no recipe {options.name!r}; there are {', '.join(known)}.")
    target = options.file or Path(f"{options.name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(known[options.name].read_text(encoding="utf-8"))
    except FileExistsError:
        parser.error(f"{target} exists already; name another file.")
    except OSError as error:
        parser.error(f"{target} cannot be written: {error.strerror}.")
    print(f"Wrote {target}. Run it with: acsp-lightning fit --config {target}")


def _recipes() -> list[Traversable]:
    package = files("acsp_lightning")
    folder = package / "recipes"
    if not folder.is_dir():  # not installed from a wheel, but run from a clone
        folder = Path(str(package)).parent / "recipes"
    return sorted((e for e in folder.iterdir() if e.name.endswith(".yaml")), key=lambda e: e.name)


def export(arguments: Sequence[str]) -> None:
    """Write the network of a checkpoint for use without this package."""
    from acsp_lightning.export_command import main

    main(arguments)


COMMANDS: Mapping[str, Command] = {"report": report, "export": export, "recipe": recipe}
