"""Copies of the network that somebody else holds: averaged ones, and those in the user's own hands."""

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.forward import is_compiled
from acsp_lightning.structure.layers import is_producer, slice_tensor
from acsp_lightning.structure.optimizer import nested_optimizers
from acsp_lightning.structure.surgery import SlicedParameter
from acsp_lightning.trainer.checks import callbacks_of

# Of a part that counts as a copy; single layers are often alike.
LEAST_LAYERS = 2

# What belongs to frameworks leads everywhere.
FRAMEWORKS = {"acsp_lightning", "builtins", "lightning", "torch"}

# Attributes of every module that hold what is its own.
OF_TORCH = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, slots=True, eq=False)
class NetworkCopy:
    """A copy of the LightningModule, or of a part of it.

    Attributes:
        owner: who holds it, for messages.
        module: the copy.
        prefix: name of the part in the LightningModule with a dot at its end; "" for a whole copy.
        is_certain: whether somebody said that it is a copy that follows training.
    """

    owner: str
    module: nn.Module
    prefix: str = ""
    is_certain: bool = False


def averaged_copies(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """The copies of the module whose weights Lightning's own callbacks average (EMA, SWA)."""
    return (average for _, average in _averages(trainer))


def _averages(trainer: pl.Trainer) -> Iterator[tuple[pl.Callback, nn.Module]]:
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback, callback._average_model.module
        if isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None:
            yield callback, callback._average_model


def evaluated_network(trainer: pl.Trainer) -> nn.Module:
    """The network whose weights validation sees: the average that WeightAveraging swaps in, if any.

    A compiled module shares its compiled callables with its copy, which would run the weights of the
    module; then it is the module itself.
    """
    average = _swapped_in(trainer)
    return trainer.lightning_module if average is None or is_compiled(average) else average


def evaluated_copy(trainer: pl.Trainer) -> nn.Module:
    """A copy of the module, with the weights that validation sees and checkpoints have first."""
    copy = eager_copy(trainer.lightning_module)
    average = _swapped_in(trainer)
    if average is not None:
        copy.load_state_dict(average.state_dict())
    return copy


def evaluated_state(trainer: pl.Trainer) -> dict[str, Any]:
    """The state dict of :func:`evaluated_copy`, without a copy."""
    average = _swapped_in(trainer)
    network = trainer.lightning_module if average is None else average
    state: dict[str, Any] = network.state_dict()
    return state


def _swapped_in(trainer: pl.Trainer) -> nn.Module | None:
    """The average that takes the place of the module in validation, if there is one."""
    found = (copy for callback, copy in _averages(trainer) if isinstance(callback, WeightAveraging))
    return next(found, None)


def check_averages(trainer: pl.Trainer) -> None:
    """Raise ``ValueError`` if an averaging callback copied the module before its network was built."""
    names = _shapes(trainer.lightning_module).keys()
    for callback, copy in _averages(trainer):
        there = _shapes(copy)
        lacking = next((name for name in names if name not in there), None)
        if lacking is not None:
            early = " or configure_model()" if isinstance(callback, WeightAveraging) else ""
            raise ValueError(
                f"{type(callback).__name__} averages {'a part' if there else 'nothing'}: it copied "
                f"{type(copy).__name__} before {lacking!r} was built, in setup() or later. Build the "
                f"network in __init__{early}."
            )


def ends_averaged(trainer: pl.Trainer) -> bool:
    """Whether the weights that a fit leaves behind are averaged, though validation saw others."""
    return any(
        isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None
        for callback in callbacks_of(trainer)
    )


class Copies:
    """The copies that cuts of one fit have to follow.

    Found are modules with the names and shapes of the whole network or of a part of it, in attributes of
    callbacks and of the LightningModule and in those of objects there; submodules, if forward never
    calls them. What is frozen and has not changed since the fit began is no average but a teacher, and
    what has gradients of its own is a twin that learns by itself; both stay as they are.

    Args:
        trainer: of the fit, before its first step.
        settings: may name further copies, which are followed in any case.
        idle: names of layers with parameters that forward calls neither in eval nor in train mode.

    Raises:
        ValueError: if ``settings.copies`` returns something that is no copy.
    """

    def __init__(
        self, trainer: pl.Trainer, settings: PruningSettings, idle: Collection[str] = ()
    ) -> None:
        self._trainer = trainer
        self._settings = settings
        self._idle = frozenset(idle)
        self._begun = {id(copy.module): _fingerprint(copy.module) for copy in self._candidates()}

    def __iter__(self) -> Iterator[NetworkCopy]:
        """The copies to follow now."""
        return (
            copy
            for copy in self._candidates()
            if not self._is_teacher(copy) and not self._is_trained(copy)
        )

    def doubtful(self) -> list[NetworkCopy]:
        """Teachers with the very weights of the network, which may be averages that begin later."""
        live = dict(self._trainer.lightning_module.named_parameters())
        return [
            copy
            for copy in self._candidates()
            if self._is_teacher(copy)
            and all(
                torch.equal(parameter, live[f"{copy.prefix}{name}"].to(parameter.device))
                for name, parameter in copy.module.named_parameters()
            )
        ]

    def _is_trained(self, copy: NetworkCopy) -> bool:
        """Whether a twin learns by itself: gradients have reached it, or an optimizer's steps."""
        optimizers = list(nested_optimizers(self._trainer.optimizers))
        return not copy.is_certain and any(
            parameter.grad is not None or any(optimizer.state.get(parameter) for optimizer in optimizers)
            for parameter in copy.module.parameters()
        )

    def _is_teacher(self, copy: NetworkCopy) -> bool:
        frozen = not any(parameter.requires_grad for parameter in copy.module.parameters())
        still = self._begun.get(id(copy.module)) == _fingerprint(copy.module)
        return frozen and still and not copy.is_certain

    def _candidates(self) -> list[NetworkCopy]:
        trainer = self._trainer
        live = trainer.lightning_module
        originals = _originals(live, self._idle)
        found = [
            NetworkCopy("an averaging callback", copy, is_certain=True)
            for copy in averaged_copies(trainer)
        ]
        seen = {id(part) for copy in found for part in copy.module.modules()}
        for module in () if self._settings.copies is None else self._settings.copies(live):
            named = next(_matches(originals, "copies", module), None)
            if named is None:
                raise ValueError(
                    f"copies returned a {type(module).__name__} whose parameters do not have the names "
                    f"and shapes of {type(live).__name__} or of a part of it; only copies can follow."
                )
            if id(named.module) not in seen:
                seen |= {id(part) for part in named.module.modules()}
                found.append(replace(named, is_certain=True))
        held = [
            (type(holder).__name__, module)
            for holder in (live, *callbacks_of(trainer))
            if not isinstance(holder, WeightAveraging | StochasticWeightAveraging)
            for module in _modules_of(holder)
        ]
        for owner, module in held:
            for copy in _matches(originals, owner, module):
                if id(copy.module) not in seen:
                    seen |= {id(part) for part in copy.module.modules()}
                    found.append(copy)
        return found


def _fingerprint(module: nn.Module) -> float:
    return sum(float(parameter.detach().double().sum()) for parameter in module.parameters())


Originals = Mapping[int, tuple[str, dict[str, torch.Size]]]


def _originals(live: nn.Module, idle: Collection[str]) -> Originals:
    """Name and shapes of every part of the network that is in use, by identity, from the outside in."""
    return {
        id(part): (name, _shapes(part))
        for name, part in live.named_modules()
        if not (idle and _layers(name, part) <= set(idle))
    }


def _layers(root: str, module: nn.Module) -> set[str]:
    """Names of the layers with parameters in a part of the network."""
    return {
        f"{root}.{name}".strip(".")
        for name, layer in module.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    }


def _modules_of(holder: object) -> Iterator[nn.Module]:
    """Modules among the attributes of a holder, and one level below them in those of objects."""
    for name, value in vars(holder).items():
        if not name.startswith("_hparams"):  # what save_hyperparameters() keeps of arguments
            yield from _modules_in(_attributes(value) or [value])


def _attributes(value: object) -> list[Any]:
    """What an object of users' code or of other packages holds, if it is no module."""
    foreign = type(value).__module__.partition(".")[0] not in FRAMEWORKS
    opened = foreign and hasattr(value, "__dict__") and not isinstance(value, nn.Module)
    return list(vars(value).values()) if opened else []


def _modules_in(values: Iterable[Any]) -> Iterator[nn.Module]:
    """Modules among values or in their lists and dicts, but for a LightningModule that is in a fit."""
    for value in values:
        entries = value.values() if isinstance(value, Mapping) else value
        for entry in entries if isinstance(value, list | tuple | Mapping) else [value]:
            in_fit = isinstance(entry, pl.LightningModule) and entry._trainer is not None
            if isinstance(entry, nn.Module) and not in_fit:
                yield entry


def _matches(originals: Originals, owner: str, module: nn.Module) -> Iterator[NetworkCopy]:
    """Outermost parts of a module that are copies of outermost parts of the network."""
    taken: set[int] = set()
    for part in module.modules():
        if id(part) in taken or id(part) in originals:
            continue
        if sum(is_producer(layer) for layer in part.modules()) < LEAST_LAYERS:
            continue
        shapes = _shapes(part)
        for name, wanted in originals.values():
            if shapes == wanted:
                taken |= {id(inner) for inner in part.modules()}
                yield NetworkCopy(owner, part, f"{name}." if name else "")
                break


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def without_copies(
    live: nn.Module, idle: Iterable[str], copies: Iterable[NetworkCopy]
) -> tuple[str, ...]:
    """Names of layers that forward never calls, less those of copies, which are cut along."""
    copied = {id(layer) for copy in copies for layer in copy.module.modules()}
    return tuple(name for name in idle if id(live.get_submodule(name)) not in copied)


def warn_of_doubtful(copies: Iterable[NetworkCopy]) -> None:
    """Say when frozen copies with the weights of the network are cut along."""
    for copy in copies:
        rank_zero_warn(
            f"{copy.owner} holds a frozen {type(copy.module).__name__} with the weights of the network. "
            "It is cut along if it has changed before the cut, as averages do, and else stays whole, as "
            "a teacher. An average that begins later has to be returned by copies=."
        )


def warn_of_lookalikes(trainer: pl.Trainer, copies: Iterable[NetworkCopy]) -> None:
    """Name the modules of callbacks that have the layers of the network in other shapes."""
    known = {id(part) for copy in copies for part in copy.module.modules()}
    own = [set(_shapes(part)) for part in trainer.lightning_module.modules()]
    for callback in callbacks_of(trainer):
        for module in _modules_of(callback):
            names = set(_shapes(module))
            if id(module) not in known and len(names) > 2 and names in own:
                rank_zero_warn(
                    f"{type(callback).__name__} holds a {type(module).__name__} with the layers of the "
                    "network in other shapes, so it is not cut along. If it has to follow, adapt it in "
                    "on_pruned."
                )


def held_tensors(trainer: pl.Trainer) -> list[tuple[Any, Any, Tensor]]:
    """Where callbacks or the module hold a tensor for a parameter: in dicts by name, and in lists.

    Looked at are the attributes of callbacks and of the LightningModule, and one level below them those
    of objects (``torch_ema``'s averages); and the attributes of submodules. A dict counts if all of its
    keys are names of parameters or buffers, of the module or of a child, and a list if it is as long as
    the parameters of one of these and has their shapes.

    Returns:
        Container, key, and the parameter or buffer that the tensor stands for.
    """
    live = trainer.lightning_module
    parts = [part for part in (live, *live.children()) if next(part.parameters(), None) is not None]
    roots = [(dict(part.named_parameters()), dict(part.named_buffers())) for part in parts]
    found = []
    for holder in (*live.modules(), *callbacks_of(trainer)):
        for container in _containers(holder):
            found += _places(container, roots)
    return found


def _containers(holder: object) -> Iterator[Any]:
    for name, value in vars(holder).items():
        if isinstance(holder, nn.Module) and name in OF_TORCH:
            continue
        if isinstance(value, list | MutableMapping):
            yield value
        else:
            yield from (v for v in _attributes(value) if isinstance(v, list | MutableMapping))


def _places(
    container: Any, roots: list[tuple[dict[str, nn.Parameter], dict[str, Tensor]]]
) -> list[tuple[Any, Any, Tensor]]:
    for parameters, buffers in roots:
        pairs: list[tuple[Any, Tensor | None]]
        if isinstance(container, MutableMapping):
            root = {**parameters, **buffers}
            pairs = [(key, root.get(key)) for key in container if isinstance(key, str)]
            whole = bool(pairs) and len(pairs) == len(container)
        else:
            pairs = list(enumerate(parameters.values()))
            whole = len(container) == len(parameters)
        if whole and all(_stands_for(container[key], parameter) for key, parameter in pairs):
            return [(container, key, parameter) for key, parameter in pairs if parameter is not None]
    return []


def _stands_for(value: Any, parameter: Tensor | None) -> bool:
    return (
        isinstance(value, Tensor)
        and parameter is not None
        and value is not parameter
        and value.shape == parameter.shape
    )


def slice_held(
    places: Iterable[tuple[Any, Any, Tensor]],
    sliced: Iterable[SlicedParameter],
    corrections: Mapping[int, Tensor],
    buffers: Mapping[int, Sequence[tuple[int, Tensor]]],
) -> None:
    """Cut the tensors that stand for parameters and buffers, as these were cut.

    Args:
        places: from :func:`held_tensors`, asked before the cut.
        sliced: what the cut made smaller.
        corrections: what recovery added to a parameter, by its identity.
        buffers: dimension and kept indices of the cuts of a buffer, by its identity before them.
    """
    by_parameter = {id(entry.parameter): entry for entry in sliced}
    for container, key, parameter in places:
        for dim, kept in buffers.get(id(parameter), ()):
            container[key] = slice_tensor(container[key], dim, kept)
        entry = by_parameter.get(id(parameter))
        if entry is not None:
            container[key] = entry.slice(container[key])
        if id(parameter) in corrections:
            container[key] = container[key] + corrections[id(parameter)].to(container[key])
