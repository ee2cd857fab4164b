"""Operators that move channels: views, slices, splits, padding, permutations."""

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.structure.marks import along, pressed, resized, split_dims, thin, varying

if TYPE_CHECKING:
    from acsp_lightning.structure.flow import Flow


def outputs(result: Any) -> list[Tensor]:
    """All tensors in what an operator returned."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def move(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Run the operator on marks and on origins."""
    given = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    if func._overloadpacket.__name__ in ("view", "_unsafe_view"):
        func = torch.ops.aten.reshape.default  # marks have strides of their own

    def run(shadow: Tensor) -> list[Tensor]:
        def swap(leaf: Any) -> Any:
            if leaf is given:
                return shadow
            return leaf.cpu() if isinstance(leaf, Tensor) else leaf

        return outputs(func(*tree_map(swap, args), **tree_map(swap, kwargs)))

    marks = flow.marks(given)
    if marks is not None:
        for output, moved in zip(outputs(result), run(marks), strict=True):
            flow.mark(output, moved)
    for place, output in enumerate(outputs(result)):
        if output is not given:
            flow.descend(output, [(name, run(e)[place]) for name, e in flow.origins(given)])


def same(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """The result has the channels of what was given."""
    if isinstance(result, Tensor) and result is not args[0] and result.shape == args[0].shape:
        flow.mark(result, flow.marks(args[0]))
        flow.descend(result, flow.origins(args[0]))


def made_like(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """A new tensor of the shape of a given one shrinks with it."""
    if isinstance(result, Tensor) and result.shape == args[0].shape:
        flow.mark(result, flow.marks(args[0]))


def view(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Move; channels that are split over several dimensions go together along all but one of these.

    That is the last one, as in a shuffle of ``view(batch, groups, channels // groups)``; the first, if
    it took up a part of what stood before the channels.
    """
    given = args[0]
    if result is given:
        return
    move(flow, func, args, kwargs, result)
    before, after = flow.marks(given), flow.marks(result)
    if before is None or after is None:
        return
    differ = varying(before)
    for left, right in split_dims(before.shape, after.shape):
        wide = [dim for dim in right if after.shape[dim] > 1]
        if len(wide) < 2 or not any(dim in differ for dim in left):
            continue
        merged = [dim for dim in left if before.shape[dim] > 1 and dim not in differ]
        shrinks = wide[0] if merged and merged[0] < min(d for d in left if d in differ) else wide[-1]
        for dim in wide:
            if dim != shrinks:
                flow.channels.tie_along(after, dim)
        _note_sizes(flow, after, shrinks)
    numbers = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, int)]
    if len(differ) == 1 and before.shape[differ[0]] in numbers:
        _note_sizes(flow, before, differ[0])


def _note_sizes(flow: "Flow", marks: Tensor, dim: int) -> None:
    flow.sized(marks.shape[dim], _vector(marks, dim))


def _vector(marks: Tensor, dim: int) -> Tensor:
    """The marks along a dimension, at the first place of all others."""
    return marks[tuple(slice(None) if d == dim else 0 for d in range(marks.ndim))]


def pad(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Pads around channels stay; those around positions belong to the channels there."""
    marks = flow.marks(args[0])
    if marks is None:
        return
    for place, (front, back) in enumerate(zip(args[1][::2], args[1][1::2], strict=True)):
        dim = marks.ndim - 1 - place
        shape = list(marks.shape)
        if dim not in varying(marks):
            shape[dim] += front + back
            marks = resized(marks, shape)
            continue
        start, end = max(0, -front), shape[dim] - max(0, -back)
        pads = []
        for count in (front, back):
            shape[dim] = max(0, count)
            pads.append(along(flow.channels.new(shape[dim]), dim, shape))
        flow.channels.pin(torch.cat(pads, dim), "it is padded with a fixed number of channels")
        marks = pressed(torch.cat([pads[0], marks.narrow(dim, start, end - start), pads[1]], dim))
    flow.mark(result, marks)


def shuffle(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Move; as a view of ``(groups, channels // groups)`` that is transposed."""
    move(flow, func, args, kwargs, result)
    marks = flow.marks(args[0])
    if marks is not None and 1 in varying(marks):
        flow.channels.tie_along(_vector(marks, 1).view(args[1], -1), 0)


def roll(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Shifted positions keep their channels; shifted channels have none to go with."""
    marks = flow.marks(args[0])
    if marks is None:
        return
    dims = [d % marks.ndim for d in (args[2] if len(args) > 2 else kwargs.get("dims", ()))]
    if not dims or any(dim in varying(marks) for dim in dims):
        flow.channels.pin(marks, "forward shifts its channels by a number in its code")
    else:
        flow.mark(result, marks)


def split(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Move; equal parts lose the same places, others as many as the attributes that count them."""
    move(flow, func, args, kwargs, result)
    marks = flow.marks(args[0])
    if marks is None:
        return
    names = [argument.name for argument in func._schema.arguments]
    dim = kwargs.get("dim", args[names.index("dim")] if len(args) > names.index("dim") else 0)
    dim %= marks.ndim
    if dim != max(varying(marks)):
        return  # parts that a view made before; or no channels at all
    vector = _vector(marks, dim)
    sizes = [part.shape[dim] for part in result]
    parts = [vector[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]
    known = [flow.sized(len(part), part) for part in parts]
    if len(set(sizes)) == 1:
        flow.sized(len(vector), vector)
    for size in set(sizes):
        alike = [part for part in parts if len(part) == size]
        for one, other in pairwise(alike):
            flow.channels.tie(one, other)
    if len(set(sizes)) > 1:
        for part, sized in zip(parts, known, strict=True):
            if not sized:
                flow.channels.pin(part, "forward splits its channels at numbers in its code")


def glu(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """One half gates the other: both lose the same places."""
    marks = flow.marks(args[0])
    if marks is None:
        return
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    first, second = marks.chunk(2, dim)
    flow.channels.tie(*thin(first, second))
    flow.mark(result, first)


def pick(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Move; what lies before a bound keeps its number, or an attribute counts it."""
    move(flow, func, args, kwargs, result)
    marks = flow.marks(args[0])
    if marks is None:
        return
    name = func._overloadpacket.__name__
    arguments = dict(zip([a.name for a in func._schema.arguments], args, strict=False), **kwargs)
    dim = arguments.get("dim", 0) % marks.ndim
    if varying(marks)[-1] != dim or (name in ("select", "unbind") and len(varying(marks)) > 1):
        return
    vector = _vector(marks, dim)
    total = len(vector)
    if name == "narrow":
        start = int(arguments["start"]) % total
        end, step = start + int(arguments["length"]), 1
    else:
        taken = slice(arguments.get("start"), arguments.get("end"), arguments.get("step", 1))
        start, end, step = taken.indices(total)
    if name in ("select", "unbind") or step != 1:
        flow.channels.pin(vector, "forward takes some of its channels by numbers in its code")
        return
    for bound, raw in ((start, arguments.get("start")), (end, arguments.get("end"))):
        if 0 < bound < total:
            _bound(flow, vector, bound, isinstance(raw, int) and raw < 0)


def _bound(flow: "Flow", vector: Tensor, bound: int, from_end: bool) -> None:
    """Channels are divided at a place: by an attribute, into equal parts, or by a number in the code."""
    first, last = vector[:bound], vector[bound:]
    counted = flow.sized(len(first), first) | flow.sized(len(last), last)
    if len(first) == len(last):
        flow.sized(len(vector), vector)
        flow.channels.tie(first, last)
    elif not counted:
        counts = last if from_end else first
        flow.channels.pin(counts, "forward divides its channels at a number in its code")


def index(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Move; an index of channels is a number for each of them."""
    move(flow, func, args, kwargs, result)
    marks = flow.marks(args[0])
    indices = args[1] if isinstance(args[1], list | tuple) else []
    for dim, index in enumerate(indices):
        if marks is not None and index is not None and dim in varying(marks):
            flow.channels.pin(marks, "forward takes its channels by numbers in its code")
