"""Copies of the network in a fit: averages, which cuts follow, teachers and twins, which stay whole."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from acsp_lightning.functional.precision import wide
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.optimizer import nested_optimizers
from acsp_lightning.trainer.candidates import NetworkCopy, find_copies
from acsp_lightning.trainer.ranks import run_on_all_ranks


class Role(Enum):
    """What a copy of the network is."""

    AVERAGE = "average"
    """Follows the network, and its cuts."""
    TEACHER = "teacher"
    """Frozen, and as it was when the fit began; stays whole."""
    TWIN = "twin"
    """Learns by itself; stays whole."""


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """What is known of a copy.

    Attributes:
        name: where it is held.
        prefix: name of the part that it is a copy of, with a dot at its end; "" for a whole copy.
        is_certain: whether somebody said that it follows the network.
        is_frozen: whether none of its parameters asks for gradients.
        has_changed: whether its weights have, since the fit began.
        has_learned: whether gradients have reached it, or an optimizer's steps.
    """

    name: str
    prefix: str
    is_certain: bool
    is_frozen: bool
    has_changed: bool
    has_learned: bool

    @property
    def key(self) -> tuple[str, str]:
        """The same in all processes, and after a resume."""
        return self.name, self.prefix

    @property
    def role(self) -> Role:
        """What such a copy is."""
        if self.is_certain:
            return Role.AVERAGE
        if self.has_learned:
            return Role.TWIN
        return Role.TEACHER if self.is_frozen and not self.has_changed else Role.AVERAGE


Records = dict[tuple[str, str], CopyRecord]


def merged(records: Iterable[CopyRecord]) -> Records:
    """What several processes know of copies, by key: what one has seen counts for all."""
    found: Records = {}
    for record in records:
        other = found.get(record.key, record)
        found[record.key] = replace(
            record,
            is_certain=record.is_certain or other.is_certain,
            is_frozen=record.is_frozen and other.is_frozen,
            has_changed=record.has_changed or other.has_changed,
            has_learned=record.has_learned or other.has_learned,
        )
    return found


class Copies:
    """The copies of the network in one fit, and what is known of them; before :meth:`begin`, none."""

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._find: Callable[[], list[NetworkCopy]] = list
        self._begun: dict[tuple[str, str], float] = {}  # fingerprints
        self._known: Records = {}
        # Those that have not learned yet, looked for once in an epoch: what takes long.
        self._unlearned: dict[tuple[str, str], list[nn.Parameter]] = {}
        self._looked_for_in: int | None = None

    def resume(self, records: Iterable[CopyRecord]) -> None:
        """Go on with what a checkpoint says of copies; before :meth:`begin`."""
        self._known = merged(records)

    def begin(self, trainer: pl.Trainer, settings: PruningSettings, idle: Collection[str] = ()) -> None:
        """Look at the copies before the first step of a fit.

        Args:
            trainer: of the fit.
            settings: may name further copies, which are followed in any case.
            idle: names of layers with parameters that forward calls neither in eval nor in train mode.

        Raises:
            ValueError: if ``settings.copies`` returns something that is no copy.
        """
        self._trainer, self._find = trainer, partial(find_copies, trainer, settings, idle)
        self._begun = {(copy.name, copy.prefix): _fingerprint(copy.module) for copy in self.found()}

    def found(self) -> list[NetworkCopy]:
        """All copies that there are now, whatever they are."""
        return self._find()

    def followed(self) -> list[NetworkCopy]:
        """The averages, by what this process knows."""
        return [copy for copy, record in self._look() if record.role is Role.AVERAGE]

    def agreed(self) -> list[NetworkCopy]:
        """The averages of this process, by what all processes know; called by all of them."""
        own: list[tuple[NetworkCopy, CopyRecord]] = []

        def work() -> list[CopyRecord]:
            own.extend(self._look())
            return [record for _, record in own]

        shares = run_on_all_ranks(work)
        together = merged(record for share in shares for record in share)
        everywhere = set.intersection(*({record.key for record in share} for share in shares))
        self._known |= together
        return [
            replace(copy, is_everywhere=record.key in everywhere)
            for copy, record in own
            if together[record.key].role is Role.AVERAGE
        ]

    def doubtful(self) -> list[NetworkCopy]:
        """Teachers with the very weights of the network, which may be averages that begin later."""
        if self._trainer is None:
            return []
        live = self._trainer.lightning_module
        return [
            copy
            for copy, record in self._look()
            if record.role is Role.TEACHER
            and _same_weights(copy.module, live.get_submodule(copy.prefix.rstrip(".")))
        ]

    def note_gradients(self) -> None:
        """Remember which copies gradients have reached: after a backward pass, before they are gone."""
        if self._trainer is None:
            return
        if self._looked_for_in != self._trainer.current_epoch:
            self._looked_for_in = self._trainer.current_epoch
            self._unlearned = {
                record.key: list(copy.module.parameters())
                for copy, record in self._look()
                if not record.is_certain
            }
        for key, parameters in list(self._unlearned.items()):
            if any(parameter.grad is not None for parameter in parameters):
                self._known[key] = replace(self._known[key], has_learned=True)
                del self._unlearned[key]

    def records(self) -> Sequence[CopyRecord]:
        """What is known of copies by now, for a checkpoint."""
        with suppress(ValueError):  # of a cut that failed: what was known before it counts
            self._look()
        return tuple(self._known.values())

    def _look(self) -> list[tuple[NetworkCopy, CopyRecord]]:
        """The copies that there are now, each with what is known of it."""
        found = [(copy, self._recorded(copy)) for copy in self.found()]
        self._known |= {record.key: record for _, record in found}
        return found

    def _recorded(self, copy: NetworkCopy) -> CopyRecord:
        key, parameters = (copy.name, copy.prefix), list(copy.module.parameters())
        before, fingerprint = self._known.get(key), _fingerprint(copy.module)
        if before is not None and not before.has_changed:
            # Left whole by a cut, it was no copy when this fit went on, but is one after a roll back.
            self._begun.setdefault(key, fingerprint)
        return CopyRecord(
            *key,
            copy.is_certain,
            is_frozen=not any(parameter.requires_grad for parameter in parameters),
            has_changed=(before is not None and before.has_changed)
            or self._begun.get(key) != fingerprint,
            has_learned=(before is not None and before.has_learned) or self._learns(parameters),
        )

    def _learns(self, parameters: Iterable[nn.Parameter]) -> bool:
        assert self._trainer is not None, "begin comes first"
        optimizers = list(nested_optimizers(self._trainer.optimizers))
        return any(
            parameter.grad is not None or any(optimizer.state.get(parameter) for optimizer in optimizers)
            for parameter in parameters
        )


def _same_weights(copy: nn.Module, original: nn.Module) -> bool:
    originals = dict(original.named_parameters())
    return all(
        torch.equal(parameter, originals[name].to(parameter.device))
        for name, parameter in copy.named_parameters()
    )


def _fingerprint(module: nn.Module) -> float:
    return sum(float(wide(parameter.detach()).sum()) for parameter in module.parameters())


def warn_of_doubtful(copies: Iterable[NetworkCopy]) -> None:
    """Say when frozen copies with the weights of the network are cut along."""
    for copy in copies:
        rank_zero_warn(
            f"{copy.name} is a frozen {type(copy.module).__name__} with the weights of the network. "
            "It is cut along if it has changed before the cut, as averages do, and else stays whole, as "
            "a teacher. An average that begins later has to be returned by copies=."
        )
