"""Who may hold something of the network: the LightningModule, callbacks, and objects in either."""

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

from acsp_lightning.trainer.checks import callbacks_of

# What belongs to frameworks leads everywhere.
FRAMEWORKS = {"acsp_lightning", "builtins", "lightning", "torch"}

# Attributes of every module that hold what is its own.
OF_TORCH = {"_parameters", "_buffers", "_modules"}


def named_holders(trainer: pl.Trainer) -> dict[str, object]:
    """The LightningModule and the callbacks by type, with a number from the second of a type on."""
    seen: Counter[str] = Counter()
    found: dict[str, object] = {}
    for holder in (trainer.lightning_module, *callbacks_of(trainer)):
        kind = type(holder).__name__
        seen[kind] += 1
        found[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = holder
    return found


def held_modules(holder: object) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a holder has, with their places: in attributes, and in lists and dicts there.

    Looked into is one level below attributes too, in those of objects; passed over are LightningModules
    that are in a fit.
    """
    submodules = holder._modules if isinstance(holder, nn.Module) else {}
    for name, value in {**_own_attributes(holder), **submodules}.items():
        opened = {f"{name}.{inner}": entry for inner, entry in _opened(value).items()}
        for place, found in (opened or {name: value}).items():
            yield from _modules_in(place, found)


def held_containers(holder: object) -> Iterator[tuple[str, Any]]:
    """Lists and dicts that a holder has, with their places: in attributes, and in those of objects."""
    for name, value in _own_attributes(holder).items():
        inner = {f"{name}.{own}": entry for own, entry in _opened(value).items()}
        for place, entry in {name: value, **inner}.items():
            if isinstance(entry, list | MutableMapping):
                yield place, entry


def _own_attributes(holder: object) -> dict[str, Any]:
    """Without what torch keeps of a module, and save_hyperparameters() of its arguments."""
    of_torch = OF_TORCH if isinstance(holder, nn.Module) else set()
    return {
        name: value
        for name, value in vars(holder).items()
        if name not in of_torch and not name.startswith("_hparams")
    }


def _opened(value: object) -> dict[str, Any]:
    """What an object of users' code or of other packages holds, if it is no module."""
    foreign = type(value).__module__.partition(".")[0] not in FRAMEWORKS
    opened = foreign and hasattr(value, "__dict__") and not isinstance(value, nn.Module)
    return dict(vars(value)) if opened else {}


def _modules_in(place: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    """A value, if it is a module, or the modules that it has as a list or dict."""
    entries = {place: value}
    if isinstance(value, Mapping):
        entries = {f"{place}[{key}]": entry for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        entries = {f"{place}[{index}]": entry for index, entry in enumerate(value)}
    for name, entry in entries.items():
        in_fit = isinstance(entry, pl.LightningModule) and entry._trainer is not None
        if isinstance(entry, nn.Module) and not in_fit:
            yield name, entry
