"""Prints the lowest versions that pyproject.toml allows, one pin a line, for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

for requirement in PROJECT["dependencies"]:
    name, bound = re.fullmatch(r"([\w-]+(?:\[\w+\])?)>=([\w.]+).*", requirement).groups()
    print(f"{name}=={bound}")
