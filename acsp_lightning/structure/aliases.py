"""Modules that a network has under several names, as after ``Sequential(*list(model.children())[:-1])``.

Everything calls a module by its first name, the one that ``named_modules()`` gives. A state dict has its
tensors under all of them.
"""

from collections.abc import Mapping

from torch import Tensor, nn


def all_names(model: nn.Module) -> dict[str, list[str]]:
    """All names of every module, by the first of them."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(first.setdefault(id(module), name), []).append(name)
    return names


def under_first_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict, those of a module with several names under its first alone.

    Args:
        model: the network; names that it does not have stay.
        state: entries of a state dict, of the same or of other shapes.

    Raises:
        ValueError: if a tensor has different shapes under different names of its module.
    """
    first = {name: names[0] for names in all_names(model).values() for name in names}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, own = name.rpartition(".")
        once = f"{first.get(owner, owner)}.{own}".lstrip(".")
        known = found.setdefault(once, tensor)
        if known is not tensor and known.shape != tensor.shape:
            raise ValueError(
                f"Layer {owner!r} does not fit: in the model it is {first[owner]!r} under another name, "
                f"but the file has {name!r} of shape {tuple(tensor.shape)} and {once!r} of shape "
                f"{tuple(known.shape)}."
            )
    return found
