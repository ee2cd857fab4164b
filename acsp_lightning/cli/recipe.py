"""``acsp-lightning recipe``: list or copy the recipes of the package."""

from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from acsp_lightning.cli.refusals import Parser, RefusalError


def main(arguments: Sequence[str]) -> None:
    """List the recipes of the package, or copy one to edit it."""
    parser = Parser(prog="acsp-lightning recipe", description="Recipes of the package.")
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
        raise RefusalError(f"there is no recipe {options.name!r}; there are {', '.join(known)}.")
    target = options.file or Path(f"{options.name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(known[options.name].read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise RefusalError(f"{target} exists already; name another file.") from error
    except OSError as error:
        raise RefusalError(f"{target} cannot be written: {error.strerror}.") from error
    print(f"Wrote {target}. Run it with: acsp-lightning fit --config {target}")


def _recipes() -> list[Traversable]:
    package = files("acsp_lightning")
    folder = package / "recipes"
    if not folder.is_dir():  # not installed from a wheel, but run from a clone
        folder = Path(str(package)).parent / "recipes"
    return sorted((e for e in folder.iterdir() if e.name.endswith(".yaml")), key=lambda e: e.name)
