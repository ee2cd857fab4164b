"""The pipeline on a copy: what a cut would do, while the network stays as it is."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from acsp_lightning.capture.class_names import class_names
from acsp_lightning.capture.holdout import SHUFFLED, is_shuffled
from acsp_lightning.functional import SelectionConfig
from acsp_lightning.measure.time_table import LAYER_TIMES
from acsp_lightning.pipeline import capture_network, make_cut, prune_network
from acsp_lightning.report import PruningStep
from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.selection.weighing import in_turn
from acsp_lightning.settings import PruningSettings, with_options
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.pruning import Recovery
from acsp_lightning.structure.randomness import random_state_restored
from acsp_lightning.structure.surgery import parameters_to_slice

T = TypeVar("T")

_LOG = logging.getLogger("acsp_lightning")


@with_options
def preview(
    model: nn.Module,
    dataloader: Iterable[Any],
    selection: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
    *,
    trade_off: bool | Sequence[float] = False,
    **options: Any,
) -> PruningStep:
    """What :class:`acsp_lightning.ACSPPruningCallback` would do to a network now.

    Captures, selects, and cuts a copy, which is measured and thrown away. Weights, buffers, modes and
    hooks of ``model`` are left as they are, and so is the random state.

    Args:
        model: the trained network, a LightningModule or any other module.
        dataloader: labelled validation batches; read several times, so no iterator that ends. Batches
            are moved to the device of the model.
        selection: how many channels would stay, and which.
        trade_off: measure what cuts of several depths would cost, as ``step.trade_off``, even where the
            volume does not depend on it; a sequence of shares of the FLOPs, in (0, 1], has a cut to each
            of these measured as well. Up to half of the samples are then held back from the capture, so
            that the cut may differ a little from the one that a fit would make.
        options: the other options of the callback. Those of a fit (``batchnorm_batches``, reports,
            ``reset_monitors``, ``guard``, ``distillation``) are checked and have no effect, but that
            times of layers, where ``latency`` is set, are kept in ``report_dir``;
            ``layers_per_epoch`` previews the first cut.

    Returns:
        The step as the callback would have it in its ``steps``, with ``epoch`` None.
        :func:`acsp_lightning.write_report` makes a page of it.

    Raises:
        TypeError: if an option is not one of the callback's.
        ValueError: as the callback, if an option is out of its range, there is no batch, labels are no
            classes, there is nothing to cut, or a volume cannot be had; or if ``dataloader`` is an
            iterator, or nothing to iterate over, such as a LightningDataModule; or if a trade-off is
            asked for with ``keep`` or a curve that has none.
    """
    settings = PruningSettings(selection=selection, **options)
    kept = None if settings.report_dir is None else Path(settings.report_dir, LAYER_TIMES)
    return preview_cut(model, dataloader, settings, trade_off=trade_off, times_file=kept)


def preview_cut(
    model: nn.Module,
    dataloader: Iterable[Any],
    settings: PruningSettings,
    *named: Any,
    trade_off: bool | Sequence[float] = False,
    times_file: Path | None = None,
) -> PruningStep:
    """As :func:`preview`, from settings.

    Args:
        model: as there.
        dataloader: as there.
        settings: what is cut, and how.
        named: what may name the classes, besides the loader.
        trade_off: as there.
        times_file: where times of layers are kept for later previews; None: nowhere.
    """
    if not isinstance(dataloader, Iterable):
        held = "val_dataloader(), after prepare_data() and setup('validate')"
        what = f"its {held}" if hasattr(dataloader, "val_dataloader") else "a DataLoader, or a list"
        raise ValueError(
            f"dataloader is a {type(dataloader).__name__}, which has no batches to iterate over. Pass "
            f"{what}."
        )
    shares = check_trade_off(trade_off, settings)
    if isinstance(dataloader, Iterator):
        raise ValueError(
            f"dataloader is a {type(dataloader).__name__}, which can be read once; a preview reads the "
            "batches several times. Pass the loader, or a list."
        )
    devices = {tensor.device for tensor in model.parameters()} or {torch.device("cpu")}
    batches = _Batches(dataloader, devices.pop(), settings.max_batches)
    site = CopySite(model, batches, class_names(*named, dataloader), times_file)
    with random_state_restored():
        example, captured = capture_network(
            model, site.batches(), settings, measured=trade_off is not False
        )
        if captured.sums is not None:
            site.inform(captured.sums)
        if captured.held_back and is_shuffled(dataloader):
            site.warn(SHUFFLED)
        return make_cut(site, captured, settings, example, shares=shares)


def check_trade_off(trade_off: bool | Sequence[float], settings: PruningSettings) -> tuple[float, ...]:
    """The shares of the FLOPs at which cuts are measured.

    Args:
        trade_off: as in :func:`preview`.
        settings: what is cut, and how.

    Raises:
        ValueError: if ``trade_off`` is neither a truth value nor shares, or the settings have no path
            along which cuts could be measured.
    """
    if isinstance(trade_off, str) or not isinstance(trade_off, bool | Sequence):
        raise ValueError(
            f"trade_off is {trade_off!r}; it must be True, False, or a list of shares of the FLOPs such "
            "as [0.8, 0.5]."
        )
    shares = () if isinstance(trade_off, bool) else tuple(trade_off)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"trade_off has {share!r}; shares of the FLOPs are numbers in (0, 1].")
    selection = settings.selection
    if trade_off is not False and not selection.by_damage:
        found = f"curve={selection.curve!r}" if selection.keep is None else f"keep={selection.keep}"
        raise ValueError(
            f"A trade-off is measured along the path of least damage, and selection.{found} has none. "
            "Leave keep out and set curve to 'measured' or 'damage', or ask for no trade-off."
        )
    return shares


class CopySite:
    """A single process, in which a copy of a network is cut; see :class:`acsp_lightning.site.Site`.

    Args:
        network: left as it is.
        captured: labelled batches on the device of the network; read several times.
        names: names of the classes.
        times_file: where times of layers are kept; None: nowhere.
    """

    is_averaged = False
    is_rank_zero = True
    processes = 1

    def __init__(
        self,
        network: nn.Module,
        captured: Iterable[Any],
        names: Sequence[str] = (),
        times_file: Path | None = None,
    ) -> None:
        self.network = network
        self.times_file = times_file
        self._captured = captured
        self._names = names

    @property
    def correctable_layers(self) -> Sequence[str]:
        """Layers of the network that may be fitted although they lose nothing."""
        return correctable_layers(self.network)

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """The result of ``work``, alone."""
        return [work()]

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of ``work``."""
        return work()

    def to_rank_zero(self, value: T) -> list[T]:
        """The value, alone."""
        return [value]

    def spread(self, name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
        """The results of works, one after the other."""
        return in_turn(name, works, costs)

    def batches(self) -> Iterable[Any]:
        """All batches."""
        return self._captured

    def class_names(self) -> Sequence[str]:
        """Names of the classes."""
        return self._names

    def uncut(self) -> nn.Module:
        """The network itself."""
        return self.network

    def inform(self, message: str) -> None:
        """Log a message under the name of the package."""
        _LOG.info(message)

    def warn(self, message: str) -> None:
        """Warn."""
        warnings.warn(message, stacklevel=2)

    def prune(self, proposal: Proposal, recovery: Recovery) -> nn.Module:
        """A copy of the network, cut."""
        smaller = eager_copy(self.network, parameters_to_slice(self.network, proposal.plan))
        prune_network(smaller, proposal, recovery)
        return smaller


@dataclass(frozen=True, slots=True)
class _Batches:
    """The first batches of a loader on a device, again and again."""

    source: Iterable[Any]
    device: torch.device
    most: int | None

    def __len__(self) -> int:
        known = len(self.source) if isinstance(self.source, Sized) else 0
        return known if self.most is None else min(known, self.most)

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.source, self.most):
            # Like Lightning, whatever can be moved: batches of other libraries are no trees.
            yield tree_map(lambda leaf: leaf.to(self.device) if hasattr(leaf, "to") else leaf, batch)
