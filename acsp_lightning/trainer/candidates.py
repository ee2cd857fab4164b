"""Modules with the names and shapes of the network or of a part of it, and where they are held."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.layers import is_producer
from acsp_lightning.trainer.averages import averages_of
from acsp_lightning.trainer.checks import callbacks_of, parameter_shapes
from acsp_lightning.trainer.holders import held_modules, named_holders

# Of a part that counts as a copy; single layers are often alike.
LEAST_LAYERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class NetworkCopy:
    """A copy of the LightningModule, or of a part of it.

    Attributes:
        name: where it is held, such as "Averaging.average": another for every copy of a process, and the
            same in all processes and after a resume.
        module: the copy.
        prefix: name of the part in the LightningModule with a dot at its end; "" for a whole copy.
        is_certain: whether somebody said that it is a copy that follows training.
        is_everywhere: whether all processes hold it.
    """

    name: str
    module: nn.Module
    prefix: str = ""
    is_certain: bool = False
    is_everywhere: bool = True


def find_copies(
    trainer: pl.Trainer, settings: PruningSettings, idle: Collection[str] = ()
) -> list[NetworkCopy]:
    """Copies of the network or of parts of it, whatever they are for.

    Looked at are the averages of Lightning's callbacks, what ``settings.copies`` returns, and modules in
    attributes of callbacks and of the LightningModule and in those of objects there; submodules, if
    forward never calls them.

    Args:
        trainer: of the fit.
        settings: may name copies that nobody finds.
        idle: names of layers with parameters that forward calls neither in eval nor in train mode.

    Raises:
        ValueError: if ``settings.copies`` returns something that is no copy.
    """
    live = trainer.lightning_module
    originals = _originals(live, frozenset(idle))
    found: list[NetworkCopy] = []
    seen: set[int] = set()
    certain = (*_averaged(trainer), *_named(live, settings, originals))
    for copy in (*certain, *_held(trainer, originals)):
        if id(copy.module) not in seen:
            seen |= {id(part) for part in copy.module.modules()}
            found.append(copy)
    return found


def _averaged(trainer: pl.Trainer) -> Iterator[NetworkCopy]:
    for name, holder in named_holders(trainer).items():
        for average in averages_of(holder):
            yield NetworkCopy(name, average, is_certain=True)


def _named(live: nn.Module, settings: PruningSettings, originals: "Originals") -> Iterator[NetworkCopy]:
    for index, module in enumerate([] if settings.copies is None else settings.copies(live)):
        copy = next(_matches(originals, f"copies[{index}]", module), None)
        if copy is None:
            raise ValueError(
                f"copies returned a {type(module).__name__} whose parameters do not have the names "
                f"and shapes of {type(live).__name__} or of a part of it; only copies can follow."
            )
        yield replace(copy, is_certain=True)


def _held(trainer: pl.Trainer, originals: "Originals") -> Iterator[NetworkCopy]:
    for name, holder in named_holders(trainer).items():
        for place, module in held_modules(holder):
            yield from _matches(originals, f"{name}.{place}", module)


Originals = Mapping[int, tuple[str, Mapping[str, tuple[int, ...] | None]]]


def _originals(live: nn.Module, idle: frozenset[str]) -> Originals:
    """Name and shapes of every part of the network that is in use, by identity, from the outside in."""
    names = {id(module): name for name, module in live.named_modules()}
    return {
        id(part): (name, parameter_shapes(part))
        for name, part in live.named_modules()
        if not (idle and _layers(part, names) <= idle)
    }


def _layers(part: nn.Module, names: Mapping[int, str]) -> set[str]:
    """Names in the network of the layers with parameters in a part of it."""
    return {
        names[id(layer)]
        for layer in part.modules()
        if next(layer.parameters(recurse=False), None) is not None
    }


def _matches(originals: Originals, place: str, module: nn.Module) -> Iterator[NetworkCopy]:
    """Outermost parts of a module that are copies of outermost parts of the network."""
    taken: set[int] = set()
    for inner, part in module.named_modules():
        if id(part) in taken or id(part) in originals:
            continue
        if sum(is_producer(layer) for layer in part.modules()) < LEAST_LAYERS:
            continue
        shapes = parameter_shapes(part)
        for name, wanted in originals.values():
            if shapes == wanted:
                taken |= {id(inner_part) for inner_part in part.modules()}
                yield NetworkCopy(f"{place}.{inner}".rstrip("."), part, f"{name}." if name else "")
                break


def without_copies(
    live: nn.Module, idle: Iterable[str], copies: Iterable[NetworkCopy]
) -> tuple[str, ...]:
    """Names of layers that forward never calls, less those of copies, which are cut along."""
    copied = {id(layer) for copy in copies for layer in copy.module.modules()}
    return tuple(name for name in idle if id(live.get_submodule(name)) not in copied)


def warn_of_lookalikes(trainer: pl.Trainer, copies: Iterable[NetworkCopy]) -> None:
    """Name the modules of callbacks that have the layers of the network in other shapes."""
    known = {id(part) for copy in copies for part in copy.module.modules()}
    own = [parameter_shapes(part).keys() for part in trainer.lightning_module.modules()]
    for callback in callbacks_of(trainer):
        for _, module in held_modules(callback):
            names = parameter_shapes(module).keys()
            if id(module) not in known and len(names) > 2 and names in own:
                rank_zero_warn(
                    f"{type(callback).__name__} holds a {type(module).__name__} with the layers of the "
                    "network in other shapes, so it is not cut along. If it has to follow, adapt it in "
                    "on_pruned."
                )
