"""Numbers of channels that shapes do not tell, kept as buffers, so that every state dict has them.

An attribute that forward reads (``self.width``), or the groups of a convolution, may change in a cut.
The buffer ``acsp_size_width`` of its module then holds what it is now, and what it was before the first
cut.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from acsp_lightning.structure.aliases import under_first_names

PREFIX = "acsp_size_"


def is_record(name: str) -> bool:
    """Whether an entry of a state dict is a record of a number."""
    return name.rpartition(".")[2].startswith(PREFIX)


def record_sizes(module: nn.Module, before: Mapping[str, object]) -> None:
    """Record attributes of a module.

    Args:
        module: after a cut.
        before: what the attributes were before it.
    """
    for attribute, value in before.items():
        now, first = _entries(getattr(module, attribute)), _entries(value)
        known = module._buffers.get(f"{PREFIX}{attribute}")
        device = next((t.device for t in chain(module.parameters(), module.buffers())), None)
        # Under inference_mode it would be a buffer that no later load can write to.
        with torch.inference_mode(False):
            rows = torch.tensor([now, first], device=device)
            if known is not None:
                rows[1] = known[1]
        module.register_buffer(f"{PREFIX}{attribute}", rows)


def set_sizes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the attributes of which the model or a state dict has records, as the state dict says.

    What it has no record of was not cut: such attributes become what they were at first.

    Args:
        model: changed in place.
        state: entries of a state dict of the model.
    """
    state = under_first_names(model, state)
    for owner, module in model.named_modules():
        for name in [name for name in module._buffers if is_record(name)]:
            if f"{owner}.{name}".lstrip(".") not in state:
                _set(module, name.removeprefix(PREFIX), module._buffers[name][1])
                del module._buffers[name]
    modules = dict(model.named_modules())
    for name, rows in state.items():
        owner, _, own = name.rpartition(".")
        if is_record(name) and owner in modules:
            _set(modules[owner], own.removeprefix(PREFIX), rows[0])
            with torch.inference_mode(False):
                modules[owner].register_buffer(own, rows.detach().clone())


def recorded(state: Mapping[str, Tensor], layer: str, attribute: str) -> int | None:
    """What a state dict records of an integer attribute; None if it has no record."""
    rows = state.get(f"{layer}.{PREFIX}{attribute}".lstrip("."))
    return None if rows is None else int(rows[0, 0])


def first_size(module: nn.Module, attribute: str) -> int:
    """What an integer attribute was before the first cut."""
    rows = module._buffers.get(f"{PREFIX}{attribute}")
    return int(getattr(module, attribute) if rows is None else rows[1, 0])


def unknown_records(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Records of attributes that the modules of ``model`` do not have."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return [
        name
        for name in names
        if is_record(name)
        and not hasattr(
            modules.get(name.rpartition(".")[0]), name.rpartition(".")[2].removeprefix(PREFIX)
        )
    ]


def _entries(value: object) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]


def _set(module: nn.Module, attribute: str, values: Tensor) -> None:
    held, entries = getattr(module, attribute), values.tolist()
    setattr(module, attribute, type(held)(entries) if isinstance(held, list | tuple) else entries[0])
