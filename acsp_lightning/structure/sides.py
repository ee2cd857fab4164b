"""Names of the sides of a module: where it holds something for every channel.

"out" and "in" are the sides of a layer. "gamma:1" is dimension 1 of a parameter or buffer ``gamma``;
"=width" is an integer attribute that counts channels, "=widths:2" an entry of a list of them.
"""

from typing import Literal

Side = str
Kind = Literal["layer", "parameter", "size"]


def parameter_side(name: str, dim: int) -> Side:
    """The side of one dimension of a parameter or buffer."""
    return f"{name}:{dim}"


def size_side(name: str, place: int | None) -> Side:
    """The side of an attribute, or of an entry of it."""
    return f"={name}" if place is None else f"={name}:{place}"


def parsed(side: Side) -> tuple[Kind, str, int | None]:
    """Kind, name, and dimension or place of a side.

    Raises:
        ValueError: if it is no name of a side.
    """
    if side in ("out", "in"):
        return "layer", side, None
    name, colon, place = side.removeprefix("=").partition(":")
    if not name or (colon and not place.isdigit()) or not (colon or side.startswith("=")):
        raise ValueError(
            f"{side!r} is no side: it must be 'out' or 'in', 'name:dim' of a parameter, or '=name' or "
            "'=name:place' of an attribute."
        )
    return "size" if side.startswith("=") else "parameter", name, int(place) if colon else None
