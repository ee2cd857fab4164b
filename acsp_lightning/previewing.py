"""The pipeline on a copy: what a cut would do, while the network stays as it is."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from acsp_lightning.capture.class_names import class_names
from acsp_lightning.functional import SelectionConfig
from acsp_lightning.pipeline import Recovery, capture_network, make_cut, prune_network
from acsp_lightning.report import PruningStep
from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.settings import PruningSettings, with_options
from acsp_lightning.structure.forward import eager_copy, random_state_restored
from acsp_lightning.structure.groups import summed_note

T = TypeVar("T")

_LOG = logging.getLogger("acsp_lightning")


@with_options
def preview(
    model: nn.Module,
    dataloader: Iterable[Any],
    selection: SelectionConfig = SelectionConfig(),  # noqa: B008 - frozen, hence safe to share
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
        options: the other options of the callback. Those of a fit (``batchnorm_batches``, reports,
            ``reset_monitors``, ``guard``) are checked and have no effect; ``layers_per_epoch`` previews
            the first cut.

    Returns:
        The step as the callback would have it in its ``steps``, with ``epoch`` None.
        :func:`acsp_lightning.write_report` makes a page of it.

    Raises:
        TypeError: if an option is not one of the callback's.
        ValueError: as the callback, if an option is out of its range, there is no batch, labels are no
            classes, there is nothing to cut, or a volume cannot be had; or if ``dataloader`` is an
            iterator, or nothing to iterate over, such as a LightningDataModule.
    """
    return preview_cut(model, dataloader, PruningSettings(selection=selection, **options))


def preview_cut(
    model: nn.Module, dataloader: Iterable[Any], settings: PruningSettings, *named: Any
) -> PruningStep:
    """As :func:`preview`, from settings.

    Args:
        model: as there.
        dataloader: as there.
        settings: what is cut, and how.
        named: what may name the classes, besides the loader.
    """
    if not isinstance(dataloader, Iterable):
        held = "val_dataloader(), after prepare_data() and setup('validate')"
        what = f"its {held}" if hasattr(dataloader, "val_dataloader") else "a DataLoader, or a list"
        raise ValueError(
            f"dataloader is a {type(dataloader).__name__}, which has no batches to iterate over. Pass "
            f"{what}."
        )
    if isinstance(dataloader, Iterator):
        raise ValueError(
            f"dataloader is a {type(dataloader).__name__}, which can be read once; a preview reads the "
            "batches several times. Pass the loader, or a list."
        )
    devices = {tensor.device for tensor in model.parameters()} or {torch.device("cpu")}
    site = CopySite(model, _Batches(dataloader, devices.pop(), settings.max_batches))
    with random_state_restored():
        example, captured = capture_network(model, site.batches(), settings)
        note = summed_note(captured.left_whole)
        if note is not None:
            site.inform(note)
        names = class_names(*named, dataloader)
        return make_cut(site, captured, settings, example, class_names=names)


class CopySite:
    """A single process, in which a copy of a network is cut; see :class:`acsp_lightning.pipeline.Site`.

    Args:
        network: left as it is.
        captured: labelled batches on the device of the network; read several times.
    """

    is_averaged = False
    is_rank_zero = True

    def __init__(self, network: nn.Module, captured: Iterable[Any]) -> None:
        self.network = network
        self._captured = captured

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """The result of ``work``, alone."""
        return [work()]

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of ``work``."""
        return work()

    def batches(self) -> Iterable[Any]:
        """All batches."""
        return self._captured

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
        smaller = eager_copy(self.network)
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
