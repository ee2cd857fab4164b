"""How the manual is built: ``sphinx-build -W --keep-going -b html docs docs/_build``."""

from importlib import metadata

project = "acsp_lightning"
author = "The acsp_lightning developers"
copyright = author
release = metadata.version("acsp-lightning")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

# Headings as anchors, named as GitHub names them, so that links work in both places.
myst_heading_anchors = 3

# Attributes of a dataclass are in its docstring already; as objects of their own they would be twice.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

# One argument a line where a signature is longer.
python_maximum_signature_line_length = 100
