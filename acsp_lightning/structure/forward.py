"""Running a network once, for inspection, without leaving a trace on it."""

import random
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointFunction

from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.restoring import state_restored

CHECKPOINTED = (
    "forward runs a part of the network by reentrant activation checkpointing (torch.utils.checkpoint "
    "with use_reentrant=True), which torch.jit cannot follow: pass use_reentrant=False, or checkpoint "
    "in training alone (if self.training)."
)


class UnsupportedStructureError(ValueError):
    """The network, or the part of it that was asked for, cannot be cut."""


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run ``model`` without what ``torch.compile`` made of it; afterwards that is back in place.

    Compiled callables that are attributes of a module give way to the originals: compiled forwards,
    steps and other methods, and modules compiled in place. torch.jit refuses to trace compiled
    callables, even while the compiler is told to stand back.
    """
    compiled = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if callable(value) and hasattr(value, "_torchdynamo_orig_callable")
    ]
    try:
        for attributes, name, value in compiled:
            attributes[name] = value._torchdynamo_orig_callable
        yield
    finally:
        for attributes, name, value in compiled:
            attributes[name] = value


def is_compiled(model: nn.Module) -> bool:
    """Whether an attribute of a module is a callable that ``torch.compile`` made."""
    return any(
        callable(value) and hasattr(value, "_torchdynamo_orig_callable")
        for module in model.modules()
        for value in vars(module).values()
    )


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """No autocast in the body; of devices that have none, nothing."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def log_nothing(*_: Any, **__: Any) -> None:
    """``LightningModule.log`` where a pass is none of the fit."""


@contextmanager
def evaluation_state(
    model: nn.Module, *, grad: bool = False, but: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Run ``model`` in eval mode, eagerly, without autocast; afterwards it is as it was.

    Train/eval flags of every submodule, buffers and attributes (see
    :func:`~acsp_lightning.structure.restoring.state_restored`), ``requires_grad`` of every parameter,
    the grad mode and the random state (of Python, NumPy and torch) are put back, also when the body
    raises.

    Args:
        model: any module.
        grad: enable autograd and let every floating-point parameter require gradients meanwhile.
        but: submodules whose buffers and attributes keep what the body makes of them.
    """
    flags = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    device_type = next((p.device.type for p in model.parameters()), "cpu")
    with (
        state_restored(model, but=but),
        _random_state_kept(model),
        without_autocast(device_type),
        # Compiled code would run past hooks that were added after its compilation.
        torch.compiler.set_stance("force_eager"),
        uncompiled(model),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
    ):
        try:
            model.eval()
            for module in model.modules():
                if vars(module).get("_trainer") is not None:
                    # What forward logs is of the passes of the fit; log_dict calls log.
                    vars(module)["log"] = log_nothing
            if grad:
                for parameter in frozen:
                    parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, training in flags:
                module.training = training


def call_counts(model: nn.Module, inputs: tuple[Any, ...]) -> Counter[str]:
    """How often ``forward(*inputs)`` calls every layer with parameters or buffers, by qualified name.

    Names come in the order of their first call. Layers that forward never calls are absent.

    Raises:
        UnsupportedStructureError: if forward fails; says on which inputs, and why.
    """
    with counted(model) as calls:
        try:
            run_forward(model, inputs)
        except Exception as error:
            raise UnsupportedStructureError(
                f"{type(model).__name__}.forward failed on the example inputs "
                f"({describe_inputs(inputs)}): {type(error).__name__}: {error}. Tracing needs a "
                "forward(inputs) that returns the network's outputs: implement it, or set "
                "example_input_array to inputs that it accepts."
            ) from error
    return calls


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """How often forward passes in the body call every layer with parameters or buffers, as above."""
    calls: Counter[str] = Counter()

    def counter(name: str) -> Any:
        def count(*_: object) -> None:
            calls[name] += 1

        return count

    handles = [
        module.register_forward_pre_hook(counter(name))
        for name, module in model.named_modules()
        if module._parameters or module._buffers
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def positional(inputs: Tensor | Mapping[str, Tensor] | tuple[object, ...]) -> tuple[Any, ...]:
    """What a user passes as inputs, as positional arguments of forward.

    Args:
        inputs: a tuple of arguments; or a tensor or a dict of tensors, which is the only argument.

    Raises:
        TypeError: if ``inputs`` is none of these.
    """
    if not isinstance(inputs, Tensor | Mapping | tuple):
        raise TypeError(
            "The inputs must be a tensor, a dict of tensors, or a tuple of positional arguments; "
            f"found {type(inputs).__name__}."
        )
    return inputs if isinstance(inputs, tuple) else (inputs,)


def sample_count(inputs: tuple[Any, ...]) -> int:
    """The batch size of arguments of forward: the length of the first tensor that has one.

    Raises:
        ValueError: if there is no such tensor, or it is empty.
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors or not len(tensors[0]):
        raise ValueError(
            f"The first tensor of the inputs ({describe_inputs(inputs)}) has no sample; its first "
            "dimension must be that of the batch."
        )
    return len(tensors[0])


def is_batched(leaf: Any, samples: int) -> bool:
    """Whether ``leaf`` is a tensor that has a row for each of the samples."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == samples


def of_batch_size(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """``inputs`` with ``size`` samples: the first ones, again and again if there are too few.

    Raises:
        ValueError: as :func:`sample_count`.
    """
    samples = sample_count(inputs)
    return samples_at(inputs, [place % samples for place in range(size)])


def samples_at(inputs: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    """Some samples of arguments of forward, in the order of their places.

    Raises:
        ValueError: as :func:`sample_count`.
    """
    samples, rows = sample_count(inputs), torch.tensor(places)

    def taken(leaf: Any) -> Any:
        return leaf.detach()[rows.to(leaf.device)] if is_batched(leaf, samples) else leaf

    batch: tuple[Any, ...] = tree_map(taken, inputs)
    return batch


def run_forward(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """``model(*inputs)`` on copies of the tensors in ``inputs``; two calls return the same.

    A forward that writes to its inputs or its buffers, or draws random numbers, finds the same ones
    every time, and batches that were made under ``inference_mode`` can be traced by autograd.
    """
    with _random_state_kept(model), state_restored(model), default_dtype(model):
        return model(*cloned(inputs))


def is_checkpointed(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether forward runs a part of the network in a way that hides it from every trace.

    That is activation checkpointing with ``use_reentrant=True``; :data:`CHECKPOINTED` says it to users.
    """
    calls: list[object] = []
    run = CheckpointFunction.apply

    def noting(*arguments: Any) -> Any:
        calls.append(arguments[0])
        return run(*arguments)

    with warnings.catch_warnings(), suppress(Exception), evaluation_state(model):
        warnings.simplefilter("ignore")  # it warns where nothing requires gradients
        CheckpointFunction.apply = staticmethod(noting)
        try:
            run_forward(model, inputs)
        finally:
            del CheckpointFunction.apply  # the inherited one comes back
    return bool(calls)


def cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors in ``inputs``, outside any graph; all else as it is."""
    copies: tuple[Any, ...] = tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, inputs
    )
    return copies


@contextmanager
def random_state_restored(devices: Iterable[torch.device] | None = None) -> Iterator[None]:
    """Whatever the body draws from global generators (Python, NumPy, torch), nobody notices later.

    Args:
        devices: GPUs of which the generators are put back too; None: all.
    """
    python, legacy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if devices is None else devices
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def advance_random_state(model: nn.Module) -> None:
    """Draw a number from every global generator, so that the next pass of a model draws others."""
    random.random()
    np.random.rand()
    for device in {torch.device("cpu"), *(p.device for p in model.parameters())}:
        torch.rand(1, device=device)


def _random_state_kept(model: nn.Module) -> AbstractContextManager[None]:
    return random_state_restored({p.device for p in model.parameters() if p.device.type == "cuda"})


def describe_inputs(inputs: tuple[Any, ...]) -> str:
    """The shapes of the tensors in ``inputs``, for messages."""
    return ", ".join(
        f"tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in tree_leaves(inputs)
    )


def output_tensors(outputs: Any) -> list[Tensor]:
    """All tensors in whatever ``forward`` returned: nested sequences, mappings and dataclasses.

    Of other objects the ``logits``, if they have any.
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # of a kind that PyTorch's trees do not know
            found += output_tensors(list(leaf.values()))
        elif isinstance(leaf, list | tuple):
            found += output_tensors(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += output_tensors([getattr(leaf, field.name) for field in fields(leaf)])
        elif isinstance(logits := getattr(leaf, "logits", None), Tensor):
            found.append(logits)
    return found


def varied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` with constant floating-point tensors (zeros, ones) replaced by normal noise.

    Constant images hide the differences between positions that a check lives on.
    """

    def vary(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        if leaf.numel() > 0 and bool((leaf != leaf.flatten()[0]).any()):
            return leaf
        noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(leaf.device, leaf.dtype)

    changed: tuple[Any, ...] = tree_map(vary, inputs)
    return changed


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Train mode for forward passes, and eval mode after them."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # in train mode it refuses a batch of one
    try:
        yield
    finally:
        model.eval()
