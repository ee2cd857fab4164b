"""One forward pass of a network with its layers watched: what each of them reads and makes."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from acsp_lightning.structure.flow import Findings, Flow, Touch
from acsp_lightning.structure.forward import UnsupportedStructureError, output_tensors, run_forward
from acsp_lightning.structure.groups import REFIT, Norm, Norms
from acsp_lightning.structure.layers import (
    channel_dim,
    has_one_slope,
    has_own_forward,
    is_depthwise,
    is_grouped,
    is_producer,
    loses_groups,
    normalises_all,
    refusal,
    side_width,
)
from acsp_lightning.structure.marks import along, varying
from acsp_lightning.structure.probing import can_lose_inputs, normalises, standardises_filters
from acsp_lightning.structure.weights import group_count

KINDS = (
    *(_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
)


Found = TypeVar("Found")

IS_OUTPUT = "its channels are also part of the network's output"


def follow(
    model: nn.Module, inputs: tuple[Any, ...], norms: Norms = "exact"
) -> tuple[Findings, Counter[str]]:
    """Carry the channels of every layer through one forward pass.

    Args:
        model: in evaluation mode; left as it was.
        inputs: arguments of forward.
        norms: what becomes of channels of which a layer uses the statistics: they stay, or may go.

    Returns:
        What was found, and how often forward calls every layer with parameters or buffers, in order of
        execution.

    Raises:
        UnsupportedStructureError: if there is no tensor in what forward returns.
    """
    flow = Flow(model)
    watcher = _Watcher(flow, model, norms)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(watcher.entering(name), with_kwargs=True))
        handles.append(module.register_forward_hook(watcher.leaving(name)))
    try:
        with torch.inference_mode(), flow:
            outputs = run_forward(model, inputs)
        watcher.pin_repeated()
    finally:
        for handle in handles:
            handle.remove()
    tensors = output_tensors(outputs)
    if not tensors:
        raise UnsupportedStructureError(
            f"{type(model).__name__}.forward returns a {type(outputs).__name__} without a known tensor. "
            "Its outputs must be tensors, or nested lists, tuples, dicts or dataclasses of them."
        )
    for output in tensors:
        marks = flow.marks(output)
        if marks is not None:
            flow.channels.pin(marks, IS_OUTPUT)
        flow.use(output, IS_OUTPUT)
    return flow.found, watcher.calls


class _Watcher:
    """Hooks on every module: layers are taken as a whole, whatever they do inside.

    Args:
        flow: carries the marks.
        model: whose modules are watched.
        norms: as in :func:`follow`.

    Attributes:
        calls: how often modules with parameters or buffers were called so far.
    """

    def __init__(self, flow: Flow, model: nn.Module, norms: Norms) -> None:
        self.calls = Counter[str]()
        self._flow = flow
        self._norms = norms
        # A norm of no kind of torch that is running.
        self._norm: str | None = None
        # Of layers that are called again: marks of what they read and make.
        self._repeated: dict[str, list[Tensor]] = {}
        self._tied = tied_layers(model)
        # Of the layers that are running: marks of what they make.
        self._running: list[Tensor] = []
        self._probing = False

    def entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._flow.stack.append((name, module))
            if self._probing:
                return
            if module._parameters or module._buffers:
                self.calls[name] += 1
            if _is_layer(module):
                self._enter(name, module, args, kwargs)
            elif not self._running and not any(module.children()) and module._parameters:
                self._enter_norm(name, module, args)

        return hook

    def leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._flow.stack.pop()
            if _is_layer(module) and not self._probing:
                made = self._running.pop()
                self._flow.suspended = bool(self._running)
                self._give(name, module, made, args, output)
            elif name == self._norm and not self._probing:
                self._norm, self._flow.suspended = None, False
                self._flow.mark(output, self._flow.marks(args[0]))

        return hook

    def _give(self, name: str, module: nn.Module, made: Tensor, args: Any, output: Any) -> None:
        """Mark what a layer gave."""
        flow = self._flow
        if not isinstance(output, Tensor):
            flow.channels.pin(made, f"{name!r} gives a {type(output).__name__}")
        elif len(made) and output.shape[self._dim(module, output)] == len(made):
            flow.mark(output, along(made, self._dim(module, output), output.shape))
        elif len(made):
            flow.channels.pin(made, f"{name!r} gives another number of channels")
        elif args and isinstance(args[0], Tensor) and args[0].shape == output.shape:
            flow.mark(output, flow.marks(args[0]))  # pinned before, for a reason that holds on

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        flow = self._flow
        given = args[0] if args else kwargs.get("input")
        if self._running and isinstance(given, Tensor):
            self._hand_on(module, given)
        flow.suspended = True
        for leaf in tree_leaves((args, kwargs)):
            flow.use(leaf)
        reason = self._reason(name, module)
        if self.calls[name] > 1 and reason is None:
            made = self._repeat(name, module, args, kwargs)
        elif reason is not None or not isinstance(given, Tensor):
            made = self._refuse(name, module, args, kwargs, reason)
        else:
            made = self._pass(name, module, given)
        self._running.append(made)

    def _hand_on(self, module: nn.Module, given: Tensor) -> None:
        """Let a layer in a layer read what the outer one makes."""
        outer, dim = self._running[-1], self._dim(module, given)
        if len(outer) == given.shape[dim]:
            self._flow.mark(given, along(outer, dim, given.shape))

    def _refuse(
        self, name: str, module: nn.Module, args: Any, kwargs: Any, reason: str | None
    ) -> Tensor:
        """Pin what a layer reads that cannot be cut; returns marks of what it makes, pinned as well."""
        why = reason or "what it reads is no first argument or 'input'"
        for leaf in tree_leaves((args, kwargs)):
            marks = self._flow.marks(leaf)
            if marks is not None:
                self._flow.channels.pin(marks, f"its channels run through {name!r}: {why}")
        if reason is None or not is_producer(module):
            return torch.zeros(0, dtype=torch.int64)
        made = self._make(name, module)
        self._flow.channels.pin(made, reason)
        return made

    def _pass(self, name: str, module: nn.Module, given: Tensor) -> Tensor:
        """Note what a layer reads, and of which channels it uses statistics; returns what it makes."""
        read = self._read(name, module, given)
        probed = not read.any() or not has_own_forward(module)
        probed = probed or self._probe(lambda: can_lose_inputs(module, given))
        if normalises_all(module) and read.any():
            dim = self._dim(module)
            own = has_own_forward(module)
            if own and not self._probe(lambda: normalises(module, given, dim)):
                self._flow.channels.pin(read, f"{name!r} is a norm with a forward of its own")
            self._note_norm(name, module, dim, read)
        elif not probed and not is_grouped(module):
            if self._probe(lambda: standardises_filters(module, given)):
                self._note_norm(name, module, self._dim(module), read)
            else:
                reason = f"{name!r} does not give the same without some of its inputs"
                self._flow.channels.pin(read, reason)
        return self._through(name, module, read, whole=loses_groups(module) or not probed)

    def _enter_norm(self, name: str, module: nn.Module, args: Any) -> None:
        """Take a module as a whole that is found to be a norm over channels."""
        flow = self._flow
        marks = flow.marks(args[0]) if args else None
        if marks is None or len(args) > 1 or len(varying(marks)) > 1 or self.calls[name] > 1:
            return
        given, (dim,) = args[0], varying(marks)
        flow.suspended = True
        if not self._probe(lambda: normalises(module, given, dim)):
            flow.suspended = False
            return
        read = marks[tuple(slice(None) if d == dim else 0 for d in range(marks.ndim))]
        self._note_norm(name, module, dim, read)
        for own, parameter in module._parameters.items():
            if parameter is not None and parameter.numel() == len(read):
                flow.found.touches.append(Touch(f"{name}.{own}", torch.arange(len(read)), read))
        self._norm = name

    def _note_norm(self, name: str, module: nn.Module, dim: int, read: Tensor) -> None:
        """Channels may go of which a layer uses the statistics, or have to stay."""
        if self._norms == "refit":
            self._flow.found.norms.append(Norm(name, dim))
            return
        who = f"{name!r}, a {type(module).__name__},"
        reason = f"its channels run through {who} which normalises all of them together"
        if is_producer(module):
            reason = f"{who} standardises its filters over all that it reads"
        self._flow.channels.pin(read, f"{reason}; {REFIT}")

    def _dim(self, module: nn.Module, of: Tensor | None = None) -> int:
        """Dimension of a layer's channels: of a tensor, from its first, else from its last."""
        dim = self._probe(lambda: channel_dim(module))
        return dim if of is None else dim % of.ndim

    def _probe(self, tried: Callable[[], Found]) -> Found:
        """Try a layer alone, its children included."""
        self._probing = True
        try:
            return tried()
        finally:
            self._probing = False

    def _reason(self, name: str, module: nn.Module) -> str | None:
        """Why a layer cannot be cut, if so."""
        if name in self._tied:
            return f"{name!r} shares a parameter with {self._tied[name]!r} (tied weights)"
        return refusal(module)

    def _repeat(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Tensor:
        """Note what a layer reads and makes that was called before; returns marks of what it makes."""
        sides, given = self._flow.found.sides, map(self._flow.marks, tree_leaves((args, kwargs)))
        known = self._repeated.setdefault(name, [])
        known += [sides.pop((name, side)) for side in ("out", "in") if (name, side) in sides]
        known += [marks for marks in given if marks is not None]
        if not is_producer(module):
            return torch.zeros(0, dtype=torch.int64)
        made = self._make(name, module)
        known.append(made)
        return made

    def pin_repeated(self) -> None:
        """Pin what layers read and make that forward calls more than once."""
        for name, known in self._repeated.items():
            reason = f"forward calls {name!r} {self.calls[name]} times; only layers called once are cut"
            for marks in known:
                self._flow.channels.pin(marks, reason)

    def _make(self, name: str, module: nn.Module) -> Tensor:
        """New marks of what a layer makes that cannot be cut."""
        size = next(s for s in ("out_channels", "out_features") if hasattr(module, s))
        made = self._flow.channels.new(int(getattr(module, size)))
        self._flow.found.sides[name, "out"] = made
        self._flow.found.mixed.add((name, "out"))
        return made

    def _read(self, name: str, module: nn.Module, given: Tensor) -> Tensor:
        """The marks along the channels of what a layer is given."""
        dim = self._dim(module, given)
        marks = self._flow.marks_or_none(given)
        if varying(marks) and dim not in varying(marks):
            self._flow.channels.pin(marks, f"{name!r} mixes neighbours, as a convolution over channels")
        for other in varying(marks):
            if other != dim:  # positions that one weight is for
                self._flow.channels.tie_along(marks, other)
        return marks[tuple(slice(None) if d == dim else 0 for d in range(marks.ndim))]

    def _tie_norm_groups(self, blocks: Tensor) -> None:
        """Statistics are those of a whole norm group, which other than channels may be part of."""
        self._flow.channels.tie_along(blocks, 1)
        mixed = (blocks > 0).any(1) & ~(blocks > 0).all(1)
        self._flow.channels.pin(blocks[mixed], "a GroupNorm normalises it with what is no channel")

    def _through(self, name: str, module: nn.Module, read: Tensor, whole: bool) -> Tensor:
        """Note the sides of a layer; returns the marks of what it makes.

        Args:
            name: of the layer.
            module: the layer.
            read: marks of what it reads.
            whole: of a convolution in groups: whole groups go.
        """
        found, channels = self._flow.found, self._flow.channels
        if not is_producer(module) or is_depthwise(module):
            if is_depthwise(module) and not read.all():
                made = channels.new(len(read))
                channels.pin(made, "what it reads cannot be followed to the layer that makes it")
                channels.tie(made, read)
                read = torch.where(read > 0, read, made)
            found.sides[name, "out"] = read
            if isinstance(module, nn.GroupNorm) and not normalises_all(module):
                self._tie_norm_groups(read.view(int(module.num_groups), -1))
            return read
        made = channels.new(side_width(module, "out"))
        found.sides[name, "out"], found.sides[name, "in"] = made, read
        if is_grouped(module):
            groups = group_count(module)
            ins, outs = read.view(groups, -1), made.view(groups, -1)
            if not read.any():  # the network's input
                channels.tie_along(outs, 0)
            elif not read.all():
                both = torch.cat([read, made])
                channels.pin(both, f"{name!r} reads in its groups what is no channel")
            elif whole:
                every = torch.cat([ins, outs], 1)
                channels.tie_along(every, 1)
                return made
            else:
                channels.tie_along(ins, 0)
                channels.tie_along(outs, 0)
        found.mixed |= {(name, "out"), (name, "in")}
        return made


def _is_layer(module: nn.Module) -> bool:
    return (is_producer(module) or isinstance(module, KINDS)) and not has_one_slope(module)


def tied_layers(model: nn.Module) -> dict[str, str]:
    """For every layer that owns a parameter together with another layer: the other's name.

    One layer under two names is one layer.
    """
    owner: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            other = owner.setdefault(id(parameter), name)
            if other != name:
                tied[name], tied[other] = other, name
    return tied
