"""Forward hooks that accumulate activation statistics on validation batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from torch.utils.hooks import RemovableHandle

from acsp_lightning.capture.holdout import held_back
from acsp_lightning.capture.statistics import Activations, InputMoments, check_positions
from acsp_lightning.functional import ClassSums
from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.evaluation import evaluation_state, without_autocast
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.layers import channel_dim

# By number of spatial axes, from 1.
POOLS: tuple[Callable[..., Tensor], ...] = (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)

# At most this many positions of an input map enter its second moments, other ones in every batch:
# neighbours are nearly redundant, and all of them would double the time of a forward pass. Above
# ``INPUT_CHANNELS`` channels still fewer, because the cost grows with the square of the channels; but
# only once there are several vectors for each channel, or their moments would be nearly singular.
INPUT_POSITIONS = 9

INPUT_CHANNELS = 256

ENOUGH_VECTORS = 4  # for each channel

# The fractional parts of multiples of these fill the unit interval, square or cube evenly, however many
# there are (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
SEQUENCES = {1: (0.6180,), 2: (0.7549, 0.5698), 3: (0.8192, 0.6711, 0.5497)}


class _EagerStance:
    """Disables ``torch.compile`` while anyone holds it: compiled code skips hooks added later.

    Shared by all captures, because they may end in any order, while stances nest.
    """

    def __init__(self) -> None:
        self._holders: set[object] = set()
        self._stance: Any = None

    def hold(self, holder: object) -> None:
        if not self._holders:
            self._stance = torch.compiler.set_stance("force_eager")
        self._holders.add(holder)

    def release(self, holder: object) -> None:
        """No-op if ``holder`` does not hold it."""
        if holder in self._holders:
            self._holders.remove(holder)
            if not self._holders:
                self._stance.__exit__(None, None, None)


_EAGER = _EagerStance()


class ActivationCapture:
    """Captures activation statistics of the layers of some groups with forward hooks.

    A layer's own output is read, before normalisation and activation: class separation is invariant to
    the affine map of a BatchNorm, and negative values that a ReLU would remove still count.

    Usage: :meth:`attach`; before each forward pass :meth:`expect` its labels, after it :meth:`pause`, or
    both by :meth:`run`; then :meth:`detach` and :meth:`finish`.

    Args:
        model: the network; layers are looked up in :meth:`attach`, so they may be replaced before that.
        groups: groups of channels to capture.
        grid: pool every spatial axis to at most this many positions; None: keep every pixel.
        num_classes: C; raised if larger labels occur.
        held_back: share of the samples that is passed over, see :func:`held_back`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[ChannelGroup],
        grid: int | None,
        num_classes: int,
        held_back: float = 0.0,
    ) -> None:
        self.groups = tuple(groups)
        self._model = model
        self._grid = grid
        self._num_classes = num_classes
        self._producers = {side.layer for group in self.groups for side in group.producers}
        self._spreads = {side.layer: side.spread for group in self.groups for side in group.consumers}
        self.held_back = held_back
        self._labels: Tensor | None = None
        self._rows: Tensor | None = None  # of the batch that are captured; None: all
        self._seen = 0
        self._outputs: dict[str, ClassSums] = {}
        self._inputs: dict[str, InputMoments] = {}
        self._samples = 0
        self._batches = 0
        self._error: Exception | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks; until they are removed, compiled code runs eagerly."""
        _EAGER.hold(self)
        for layer in self._producers:
            module = self._model.get_submodule(layer)
            self._handles.append(module.register_forward_hook(self._output_hook(layer)))
        for layer, spread in self._spreads.items():
            module = self._model.get_submodule(layer)
            hook = self._input_hook(layer, spread)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks; no-op if there are none."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _EAGER.release(self)
        self.pause()

    def expect(self, labels: Tensor) -> None:
        """Set the class labels of the next forward pass: int64, shape (B,)."""
        self._labels, self._rows = labels, None
        if self.held_back:
            kept = ~held_back(self._seen, len(labels), self.held_back)
            self._rows = kept.nonzero().flatten().to(labels.device)
        self._seen += len(labels)
        if len(labels):
            # A shuffled validation may show a class that was not among the first labels read.
            self._num_classes = max(self._num_classes, int(labels.max()) + 1)
        self._samples += len(labels) if self._rows is None else len(self._rows)
        self._batches += 1

    def run(self, inputs: tuple[Any, ...], labels: Tensor) -> None:
        """Capture a forward pass of our own, ``inputs`` being the arguments of forward."""
        self.expect(labels)
        try:
            with evaluation_state(self._model):
                run_forward(self._model, inputs)
        finally:
            self.pause()

    def fail(self, error: Exception) -> None:
        """Stop capturing; :meth:`finish` raises ``error``.

        Raised at once on one of several processes, it would leave the others waiting.
        """
        self._error = self._error or error
        self.detach()

    def pause(self) -> None:
        """Ignore forward passes until the next :meth:`expect`."""
        self._labels = None

    def finish(self) -> Activations:
        """The statistics of all samples seen; empty if there were none.

        Raises:
            ValueError: if the activations of a layer are NaN or infinite, missing, not one row per
                label, or maps of several sizes; or the error passed to :meth:`fail`.
        """
        if self._error is not None:
            raise self._error
        if self._samples == 0:
            return Activations({}, {}, 0)
        silent = sorted(
            (self._producers - set(self._outputs)) | (set(self._spreads) - set(self._inputs))
        )
        if silent:
            raise ValueError(
                f"Layer {silent[0]!r} was never called on the validation batches, although forward "
                "calls it. Pruning reads the activations of validation_step: let it run the network."
            )
        finite = _finite({layer: sums.squares for layer, sums in self._outputs.items()})
        if not all(finite.values()):
            raise ValueError(
                f"Layer {_first_false(finite)!r} gave NaN or infinite activations on the validation "
                "batches. Pruning needs finite ones: look at the learning rate, or prune earlier."
            )
        finite = _finite({layer: inputs.held for layer, inputs in self._inputs.items()})
        if not all(finite.values()):
            raise ValueError(
                f"Layer {_first_false(finite)!r} was given NaN or infinite inputs in validation."
            )
        return Activations(dict(self._outputs), dict(self._inputs), self._samples)

    def _output_hook(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, _arguments: object, output: Tensor) -> None:
            if self._labels is None:
                return
            try:
                with without_autocast(output.device.type):
                    values = _pooled(output.detach(), channel_dim(module), self._grid)
                    self._add(layer, values, self._labels)
            except Exception as error:
                self.fail(error)

        return hook

    def _add(self, layer: str, values: Tensor, labels: Tensor) -> None:
        if len(values) != len(labels):
            raise ValueError(
                f"Layer {layer!r} gave {len(values)} rows for a batch of {len(labels)} labels. Pruning "
                "needs one row of activations per label; exclude the layer, or pass read_batch= to give "
                "the labels of the rows."
            )
        if self._rows is not None:
            values, labels = values[self._rows], labels[self._rows]
        if not len(values):
            return
        if layer not in self._outputs:
            self._outputs[layer] = ClassSums.about(values, self._num_classes)
        check_positions(layer, self._outputs[layer].origin.shape[1], values.shape[2])
        self._outputs[layer] = self._outputs[layer].widened(self._num_classes)
        self._outputs[layer].add_(values, labels)

    def _input_hook(self, layer: str, spread: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._labels is None:
                return
            try:
                inputs = (args[0] if args else kwargs["input"]).detach()
                with without_autocast(inputs.device.type):
                    channels = inputs.movedim(channel_dim(module), 1)
                    known = self._inputs.get(layer)
                    most = _positions_of(
                        channels.shape[1] // spread, 0 if known is None else known.count
                    )
                    channels = _some_positions(channels, self._batches, most)
                    if self._rows is not None:
                        channels = channels[self._rows]
                    channels = channels.movedim(1, 0)
                    # After a flatten a channel has several features, which are its positions. In
                    # float64, because TF32 products are too coarse for a nearly singular least-squares
                    # problem.
                    rows = wide(channels.reshape(len(channels) // spread, -1))
                    if known is None:
                        known = InputMoments(0, rows[:, :0])
                    self._inputs[layer] = known.with_rows(rows)
            except Exception as error:
                self.fail(error)

        return hook


def _finite(tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whether each tensor is all finite, with one synchronisation per device."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    return {
        name: flag
        for flags in by_device.values()
        for name, flag in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
    }


def _first_false(flags: Mapping[str, bool]) -> str:
    return next(name for name, flag in flags.items() if not flag)


def _positions_of(num_channels: int, vectors: int) -> int:
    """Number of positions to read from a map, after ``vectors`` vectors have been read."""
    if vectors < ENOUGH_VECTORS * num_channels:
        return INPUT_POSITIONS
    return max(1, INPUT_POSITIONS * INPUT_CHANNELS // max(INPUT_CHANNELS, num_channels))


def _some_positions(maps: Tensor, turn: int, most: int) -> Tensor:
    """Maps (B, D, ...) on a grid of at most ``most`` positions, another grid in every ``turn``."""
    if maps.ndim - 2 > max(SEQUENCES):
        maps = maps.flatten(2)
    axes = maps.ndim - 2
    left: float = most
    for axis in range(axes):
        enough = int(left ** (1 / (axes - axis)) + 1e-9)  # 64 ** (1 / 3) is a little less than 4
        left /= enough
        stride = -(-maps.shape[axis + 2] // enough)
        offset = int(stride * (turn * SEQUENCES[axes][axis] % 1))
        maps = maps[(slice(None),) * (axis + 2) + (slice(offset, None, stride),)]
    return maps


def _pooled(output: Tensor, dim: int, grid: int | None) -> Tensor:
    """Activations as (B, N, P), each spatial axis averaged to at most ``grid`` positions."""
    # Half precision overflows in the sums of a pool.
    values = output.to(torch.promote_types(output.dtype, torch.float32)).movedim(dim, 1)
    spatial = values.shape[2:]
    if grid is not None and any(size > grid for size in spatial):
        values = POOLS[len(spatial) - 1](values, [min(axis, grid) for axis in spatial])
    return values.flatten(2) if spatial else values.unsqueeze(2)
