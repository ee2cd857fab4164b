"""Where a cut is made: what the pipeline needs of a running fit, or of a copy of a network."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.structure.pruning import Recovery

T = TypeVar("T")


class Site(Protocol):
    """Where a cut is made."""

    @property
    def network(self) -> nn.Module:
        """The network before the cut."""

    @property
    def correctable_layers(self) -> Sequence[str]:
        """Layers that may be fitted although they lose nothing, by the network in training."""

    @property
    def is_averaged(self) -> bool:
        """Whether the network has averaged weights instead of those in training."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process decides."""

    @property
    def processes(self) -> int:
        """Number of processes that cut the same network."""

    @property
    def times_file(self) -> Path | None:
        """Where times of layers are kept for later cuts, on the process that decides; None: nowhere."""

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Results of ``work`` on every process; where it fails on one, it fails on all."""

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the process that decides, on every process."""

    def to_rank_zero(self, value: T) -> list[T]:
        """``value`` of every process on the one that decides, and nothing on the others.

        Tensors arrive on the device of the network.
        """

    def spread(self, name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
        """The results of works, in order, on the process that decides, and nothing on the others.

        Each is done on one process, which all have the same works; ``costs`` say about how much each
        takes, and ``name`` what they are.
        """

    def batches(self) -> Iterable[Any]:
        """This process's share of the captured validation batches, on the device of the network."""

    def class_names(self) -> Sequence[str]:
        """Names of the classes, as far as the data has them."""

    def uncut(self) -> nn.Module:
        """The network before the cut, for as long as the caller holds it."""

    def prune(self, proposal: Proposal, recovery: Recovery) -> nn.Module:
        """Make the cut; returns the smaller network."""

    def inform(self, message: str) -> None:
        """Show a message to the user."""

    def warn(self, message: str) -> None:
        """Warn the user, once for all processes."""
