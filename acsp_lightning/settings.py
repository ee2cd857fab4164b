"""Every option of a cut, declared and checked once; callback, preview and command line share it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, get_args, get_type_hints

from acsp_lightning.capture.batches import read_batch
from acsp_lightning.functional import SelectionConfig
from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import check_batch_sizes
from acsp_lightning.structure.groups import Norms

__all__ = ["Distillation", "Guard", "PruningSettings"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Guard:
    """When a cut counts as recovered; one that has not is rolled back.

    Weights, optimizer state and averaged copies then go back to what they were before the cut, and the
    same layers are cut once more, at half the depth; if that is too much as well, they stay as they
    were. Learning rates and schedules go on. While a cut waits for its verdict, the callback's state
    holds a copy of the weights and of the optimizer's state.

    Args:
        max_drop: how much worse ``monitor`` may be than in the captured validation, in its own units;
            finite, at least 0.
        monitor: a metric that the module logs in validation.
        mode: "max" if more of it is better, "min" if less is.
        patience: epochs of fine-tuning before the verdict, at least 1.

    Raises:
        ValueError: if an argument is out of its range, or ``monitor`` is called a loss or an error and
            ``mode`` is "max".
    """

    max_drop: float
    monitor: str = "val_acc"
    mode: Literal["max", "min"] = "max"
    patience: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        if not _is_number(self.max_drop) or not 0 <= self.max_drop < math.inf:
            raise ValueError(
                f"max_drop is {self.max_drop!r}; it must be a finite number >= 0 in the units of "
                f"{self.monitor!r}, such as 0.01."
            )
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ValueError(
                f"monitor is {self.monitor!r}; it must be the name of a metric that the module logs in "
                "validation."
            )
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode is {self.mode!r}; it must be 'max' or 'min'.")
        if self.mode == "max" and any(word in self.monitor for word in ("loss", "error")):
            raise ValueError(
                f"monitor is {self.monitor!r} with mode='max', under which a rise would be no drop; set "
                "mode='min'."
            )
        _check_count("patience", self.patience, at_least=1)


@dataclass(frozen=True, slots=True)
class Distillation:
    """The network before the first cut as teacher of the network after it.

    A training step then learns from ``(1 - w) loss + w T^2 KL(teacher || student)``, where ``loss`` is
    the module's own and KL compares the class probabilities ``softmax(scores / T)`` of both networks on
    the same inputs, the mean over the batch. No line of the module changes, and what it logs stays its
    own loss; ``acsp/distillation_loss`` is ``T^2 KL``. Nothing is taught before the first cut.

    Args:
        weight: share w of the teacher in the loss, in (0, 1].
        temperature: T, finite, above 0; the higher, the more the less likely classes count.

    Raises:
        ValueError: if a number is out of its range.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    weight: float = 0.9
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Check both numbers."""
        if not _is_share(self.weight):
            raise ValueError(
                f"weight is {self.weight!r}; it must be a number in (0, 1], such as 0.9: the "
                "share of the teacher in the loss."
            )
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature!r}; it must be a finite number above 0, such as 4."
            )


# Options that are records themselves.
RECORDS: Mapping[str, Any] = {"selection": SelectionConfig, "guard": Guard, "distillation": Distillation}


def with_hints(kind: type[T]) -> type[T]:
    """Let a constructor say where an option of a record belongs that it does not have."""
    init = kind.__init__

    @wraps(init)
    def __init__(self: T, *args: Any, **options: Any) -> None:  # noqa: N807 - it takes its place
        for name in options.keys() - {field.name for field in fields(kind)}:  # type: ignore[arg-type]
            for option, record in RECORDS.items():
                if name in record.__dataclass_fields__:
                    given = f"{name}={options[name]!r}"
                    raise TypeError(f"{name} belongs in {option}={record.__name__}({given}).")
        init(self, *args, **options)

    kind.__init__ = __init__  # type: ignore[method-assign, assignment]
    return kind


@with_hints
@dataclass(kw_only=True, eq=False)
class PruningSettings:
    """Every option of a cut but its time.

    Args:
        layers_per_epoch: groups of layers taken by one cut, first layer to last, continuing where the
            last cut ended (1: the order of the paper). None: all groups at every cut.
        include: shell patterns on qualified layer names; only layers that match one are cut.
        exclude: shell patterns on qualified layer names; layers that match one stay whole.
        residual: also cut channels that run through residual sums; all layers that write into a sum
            lose the same ones. None: where there is little to cut inside of residual blocks
            (torchvision's ResNet-18 and 34, RepVGG).
        norms: "exact" leaves channels whole whose statistics a LayerNorm or a standardised filter uses;
            "refit" cuts them, with the norm over those that stay, which is an approximation.
        selection: how many channels stay, and which; a dict of its fields will do.
        recovery: how layers make up for removed channels: "least_squares" refits those that read them,
            and all after them, one by one to their outputs before the cut; "fold" only folds into the
            readers what the kept channels predict, without a further pass; "none" leaves all weights.
        recovery_samples: up to this many captured samples serve "least_squares" and the damage curve.
            None: as many as fit in 128 MB, 512 to 2,048 (images of 32 px: 2,048, of 224 px: 512).
        measured_samples: up to this many validation samples, at most half of them, are held back from
            the capture where the volume is measured: ``selection.curve="measured"`` without
            ``selection.flops`` and ``selection.latency``, or ``selection.tolerance``. Cuts are compared
            with the uncut network on those of the first process; time grows with it.
        batchnorm_batches: training batches, at most an epoch of them, from which BatchNorm statistics
            are taken after a cut; with "least_squares" the outputs stay. 0: no training batch is read.
        round_to: channel counts are rounded up to a multiple of this, at most the width of the
            narrowest layer.
        max_batches: up to this many validation batches are captured. None: all of them.
        read_batch: splits a batch into (inputs, labels), labels being integers of shape (B,); in YAML
            its import path. The default understands ``(x, y)`` and dicts with ``image``, ``x`` or
            ``pixel_values`` and ``label``, ``y`` or ``labels``.
        read_outputs: finds class scores, (B, C), in what forward returns, or None if there are none; in
            YAML its import path. None: the outputs themselves if they are a tensor, or else their
            ``logits``, as key or attribute; a single logit per sample tells two classes apart.
        report_dir: folder that gets a subfolder for every cut, with its record, page and plots. None:
            ``acsp`` in the logger's directory, or in the trainer's.
        report_plots: draw page and plots, a second or more for a cut, and send some to TensorBoard and
            W&B. False: the record alone, from which ``acsp-lightning report`` draws them later.
        latency_batch_sizes: batch sizes at which the network is timed before and after a cut, eagerly,
            on the device of the module; takes seconds, and memory for a copy. Empty: not timed.
        latency_at: under what conditions the forward pass is timed that ``selection.latency`` is a share
            of, see :class:`LatencyAt`; a dict of its fields will do.
        latency_table: a file that ``acsp-lightning profile`` has written on another machine:
            ``selection.latency`` is then a share of the time there, for one cut. None: timed here.
        copies: a function of the module that returns copies of it, or of parts of it, that nobody finds
            (in globals, in closures); they are cut along. In YAML its import path.
        reset_monitors: EarlyStopping, ReduceLROnPlateau and ModelCheckpoint forget at a cut how good
            the larger network was.
        guard: rolls back a cut that costs too much, see :class:`Guard`; a dict of its fields will do.
            None: every cut stays.
        distillation: lets the network before the first cut teach the one after it, see
            :class:`Distillation`; a dict of its fields will do. None: no teacher.

    Raises:
        ValueError: if an argument is out of its range.
    """

    layers_per_epoch: int | None = None
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    residual: bool | None = None
    norms: Norms = "exact"
    selection: SelectionConfig = SelectionConfig()  # noqa: RUF009 - frozen, hence safe to share
    recovery: Literal["least_squares", "fold", "none"] = "least_squares"
    recovery_samples: int | None = None
    measured_samples: int = 1024
    batchnorm_batches: int = 0
    round_to: int = 1
    max_batches: int | None = None
    # With Any: for a function of modules or tensors the help would list every class of them.
    read_batch: Callable[[Any], Any] = read_batch
    read_outputs: Callable[[Any], Any] | None = None
    report_dir: str | Path | None = None
    report_plots: bool = True
    latency_batch_sizes: Sequence[int] = ()
    latency_at: LatencyAt = LatencyAt()  # noqa: RUF009 - frozen, hence safe to share
    latency_table: str | Path | None = None
    copies: Callable[[Any], Any] | None = None
    reset_monitors: bool = True
    guard: Guard | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        """Check every option; lists become tuples, and dicts the records that they describe."""
        for name in ("layers_per_epoch", "max_batches", "recovery_samples"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), at_least=1)
        for name, least in (
            ("measured_samples", 1),
            ("batchnorm_batches", 0),
            ("round_to", 1),
        ):
            _check_count(name, getattr(self, name), at_least=least)
        for name in ("report_plots", "reset_monitors"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if not (self.residual is None or isinstance(self.residual, bool)):
            raise ValueError(f"residual is {self.residual!r}; it must be True, False or None.")
        for name in ("norms", "recovery"):
            allowed = get_args(get_type_hints(PruningSettings)[name])
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )
        if not callable(self.read_batch):
            raise ValueError(
                f"read_batch is {self.read_batch!r}; it must be a function of a batch that returns "
                "(inputs, labels)."
            )
        if self.read_outputs is not None and not callable(self.read_outputs):
            raise ValueError(
                f"read_outputs is {self.read_outputs!r}; it must be a function of what forward returns "
                "that returns class scores (B, C) or None, or None."
            )
        if self.copies is not None and not callable(self.copies):
            raise ValueError(
                f"copies is {self.copies!r}; it must be a function of the module that returns copies "
                "of it, or None."
            )
        self.include = _patterns("include", self.include)
        self.exclude = _patterns("exclude", self.exclude)
        check_batch_sizes("latency_batch_sizes", self.latency_batch_sizes)
        self.latency_batch_sizes = tuple(self.latency_batch_sizes)
        for name in ("report_dir", "latency_table"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, str | Path):
                raise ValueError(f"{name} is {path!r}; it must be a path, or None.")
        share = self.selection if _is_share(self.selection) else 0.5
        self.selection = _record("selection", self.selection, SelectionConfig, f"flops={share}")
        self.latency_at = _record("latency_at", self.latency_at, LatencyAt, "batch_size=1")
        if self.guard is not None:
            self.guard = _record("guard", self.guard, Guard, "max_drop=0.01")
        if self.distillation is not None:
            self.distillation = _record(
                "distillation", self.distillation, Distillation, "weight=0.9, temperature=4.0"
            )


# Defaults are those of the constructor; as attributes of the class, help would list them once more.
for _field in fields(PruningSettings):
    delattr(PruningSettings, _field.name)


def check_epochs(epochs: Sequence[int], latency_table: str | Path | None = None) -> None:
    """Raise ``ValueError`` unless ``epochs`` are distinct integers from 0, at least one.

    With a ``latency_table`` just one: it knows the layers of the network before its first cut.
    """
    wanted = "give zero-based epochs such as [4], each once"
    if isinstance(epochs, str) or not isinstance(epochs, Sequence) or not epochs:
        raise ValueError(f"epochs is {epochs!r}; {wanted}.")
    for epoch in epochs:
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise ValueError(f"epochs has {epoch!r}, which is no integer; {wanted}.")
        if epoch < 0:
            raise ValueError(f"epochs has {epoch}, which is negative; {wanted}.")
        if list(epochs).count(epoch) > 1:
            raise ValueError(f"epochs has {epoch} more than once; {wanted}.")
    if latency_table is not None and len(epochs) > 1:
        raise ValueError(
            f"epochs is {list(epochs)}, and latency_table={latency_table} has the layers of the network "
            "before its first cut, which a second one would not find. Cut once, or leave it out."
        )


def with_options(documented: T) -> T:
    """Put the options of :class:`PruningSettings` in place of ``{options}`` in a docstring.

    They are described once, and shown wherever they are accepted.
    """
    text = cleandoc(PruningSettings.__doc__ or "")
    options = text.partition("Args:\n")[2].partition("\n\nRaises:")[0]
    # The dedented text keeps the four spaces of an entry.
    documented.__doc__ = cleandoc(documented.__doc__ or "").replace("    {options}", options)
    return documented


def _check_count(name: str, value: int, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer >= {at_least}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1


def _patterns(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """One string instead of a list is a likely slip."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{name} is {patterns!r}; it must be a list of strings such as ['features.*'].")
    return tuple(patterns)


def _record(name: str, value: Any, kind: type[T], example: str) -> T:
    if isinstance(value, Mapping):
        try:
            return kind(**value)
        except TypeError as error:
            raise ValueError(
                f"{name} is {dict(value)!r}, not the fields of a {kind.__name__}: {error}."
            ) from error
    if not isinstance(value, kind):
        raise ValueError(
            f"{name} is {value!r}; it must be a {kind.__name__}, such as {kind.__name__}({example})."
        )
    return value
