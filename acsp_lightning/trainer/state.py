"""What the callback keeps in a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acsp_lightning.capture.statistics import Captured
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.report import PruningStep
from acsp_lightning.serialization import from_record, to_record
from acsp_lightning.trainer.copies import CopyRecord
from acsp_lightning.trainer.guard import Trial
from acsp_lightning.trainer.uncut import Uncut

OTHER_FORMAT = (
    "Its weights can be loaded with load_pruned; to go on with that fit, install the version that "
    "began it."
)


@dataclass(frozen=True, slots=True)
class CallbackState:
    """State of a pruning callback in a fit.

    Attributes:
        steps: the cuts so far.
        visited: names of the groups that were cut.
        initial: complexity of the network before its first cut; None before the first epoch.
        captured: what waits for its cut.
        trial: the cut that waits for the guard's verdict.
        uncut: what keeps the network before the first cut; None: there is none, or no cut yet.
        copies: what is known of the copies of the network.
        settled: epochs in which no layer was left to capture, or that a fit had behind it.
    """

    steps: list[PruningStep]
    visited: list[str]
    initial: Complexity | None
    captured: Captured | None
    trial: Trial | None
    uncut: Uncut | None = None
    copies: Sequence[CopyRecord] = ()
    settled: Sequence[int] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data and tensors, as ``torch.load(weights_only=True)`` reads them."""
        return to_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CallbackState":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if another version of the package wrote it; says what to do.
        """
        try:
            return from_record(cls, data, OTHER_FORMAT)
        except ValueError as error:
            raise ValueError(
                f"The pruning callback's state in the checkpoint cannot be read: {error}"
            ) from error
