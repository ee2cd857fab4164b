"""What operators do with channels: move them, join them position by position, or mix them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from acsp_lightning.structure import moving
from acsp_lightning.structure.marks import along, none_of, resized, thin, varying
from acsp_lightning.structure.moving import outputs

if TYPE_CHECKING:
    from acsp_lightning.structure.flow import Flow

Rule = Callable[["Flow", Any, tuple[Any, ...], dict[str, Any], Any], None]

VIEWS = {"view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as"}
MOVES = {
    *("transpose", "permute", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "flip"),
    *("pixel_shuffle", "pixel_unshuffle", "rot90"),
    *("adjoint", "numpy_T", "broadcast_to", "diagonal", "unfold"),
}
SAME = {
    *("clone", "contiguous", "alias", "detach", "detach_", "to", "_to_copy", "type_as", "dropout"),
    *("feature_dropout", "alpha_dropout", "zeros_like", "ones_like", "empty_like", "full_like"),
    *("rand_like", "randn_like", "randint_like", "bernoulli", "lift_fresh", "resolve_conj"),
    *("resolve_neg", "positive", "cpu", "cuda", "float", "half", "fill_", "zero_", "normal_"),
    *("uniform_", "bernoulli_", "data"),
}
# Position by position, although torch does not say so of all of their overloads.
POINTWISE = {
    *("hardswish", "hardswish_", "where", "masked_fill", "masked_fill_", "copy_", "prelu", "gelu_"),
    *("_prelu_kernel", "log_sigmoid", "hardsigmoid_", "clamp", "clamp_", "lerp", "isfinite", "isinf"),
}
NORMS = {"batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"}
JOINS = {"cat", "concat", "concatenate", "stack"}
REDUCTIONS = {
    *("sum", "mean", "amax", "amin", "max", "min", "var", "std", "prod", "norm", "logsumexp"),
    *("linalg_vector_norm", "var_mean", "std_mean", "argmax", "argmin", "median", "any", "all"),
}
ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "softmin"}
SPLITS = {"split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split"}
PICKS = {"slice", "narrow", "select", "unbind"}
# They change the last one, two or three dimensions of maps.
SPATIAL = ("pool", "upsample", "grid_sampler", "interpolate")
ADDITIONS = {"add", "add_", "sub", "sub_", "rsub"}
FIXED = "its channels meet a tensor of a size that no cut changes"


def rule(func: Any) -> Rule | None:
    """What an operator does with the channels it is given; None if that is not known."""
    name = func._overloadpacket.__name__
    if name in ("max", "min") and func._overloadname == "other":
        return _pointwise  # of two tensors, where the others reduce one
    for names, found in RULES:
        if name in names:
            return found
    if torch.Tag.pointwise in func.tags:
        return _pointwise
    if any(part in name for part in SPATIAL):
        return _spatial
    return None


def unknown(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """What an operator gives that may mix anything is a mixture of all channels that it is given."""
    for leaf in tree_leaves((args, kwargs)):
        marks = flow.marks(leaf)
        if marks is not None:
            flow.mix(marks, _mixed(func), result)


def _mixed(func: Any) -> str:
    name = str(func._overloadpacket.__name__).strip("_")
    return f"its channels are mixed with one another ({name})"


def _pointwise(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Tie what meets at one position; a tensor of one place along the channels meets none."""
    if not isinstance(result, Tensor):
        unknown(flow, func, args, kwargs, result)
        return
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func._overloadpacket.__name__ == "prelu":
        tensors[1] = _seen_along(flow, tensors[1], tensors[0])
    joined: Tensor | None = None
    shape, summed = result.shape, False
    for tensor in tensors:
        marks = flow.marks(tensor)
        if marks is None:
            continue
        marks = marks.expand(shape)
        if joined is None:
            joined = marks
            continue
        one, other = thin(joined, marks)
        summed |= flow.channels.tie(one, other) and func._overloadpacket.__name__ in ADDITIONS
        joined = torch.where(one > 0, one, other).expand(shape)
    if joined is None:
        flow.descend(result, _all_origins(flow, tensors, shape))
        return
    if summed:
        flow.channels.add(joined)
    for tensor in tensors:
        if flow.marks(tensor) is None and not flow.touch(tensor, joined):
            _fix(flow, tensor, joined)
    flow.mark(result, joined)


def _all_origins(flow: "Flow", tensors: Sequence[Tensor], shape: torch.Size) -> list[tuple[str, Tensor]]:
    found = [origin for tensor in tensors for origin in flow.origins(tensor)]
    return [(name, elements.expand(shape)) for name, elements in found]


def _fix(flow: "Flow", constant: Tensor, marks: Tensor) -> None:
    """Pin channels that meet a constant with a value for each of them."""
    sizes = [1] * (marks.ndim - constant.ndim) + list(constant.shape)
    differ = varying(marks)
    if differ and all(sizes[dim] > 1 for dim in differ):
        flow.channels.pin(marks, FIXED)


def _seen_along(flow: "Flow", vector: Tensor, tensor: Tensor, dim: int = 1) -> Tensor:
    """A parameter of one value a channel as it broadcasts with maps."""
    shape = [1] * tensor.ndim
    shape[dim] = -1
    seen = vector.view(shape)
    flow.descend(seen, [(name, elements.view(shape)) for name, elements in flow.origins(vector)])
    return seen


def _norm(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """BatchNorm as a function: its tensors have one value for each channel."""
    marks = flow.marks(args[0])
    if marks is None:
        return
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor):
            seen = _seen_along(flow, tensor, args[0])
            if not flow.touch(seen, marks):
                _fix(flow, seen, marks)
    flow.mark(outputs(result)[0], marks)


def _convolution(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """One filter for each channel, as a function: its tensors have an entry for each channel."""
    (given, weight, bias), groups = args[:3], args[-1]
    marks = flow.marks(given)
    if marks is None or varying(marks) != [1] or tuple(weight.shape[:2]) != (groups, 1):
        unknown(flow, func, args, kwargs, result)
        return
    vector = marks[tuple(slice(None) if dim == 1 else 0 for dim in range(marks.ndim))]
    flow.sized(groups, vector)
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)
            flow.descend(rows, [(n, e.reshape(rows.shape)) for n, e in flow.origins(tensor)])
            met = along(vector, 0, rows.shape)
            if not flow.touch(rows, met):
                _fix(flow, rows, met)
    flow.mark(result, along(vector, 1, result.shape))


def _join(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Concatenate marks; of parts without channels, those beside channels stay."""
    parts = args[0]
    known = [flow.marks(part) for part in parts]
    differ = {d - part.ndim for m, part in zip(known, parts, strict=True) if m is not None
              for d in varying(m)}  # fmt: skip
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    dim = dim if dim < 0 else dim - result.ndim
    stacked = func._overloadpacket.__name__ == "stack"
    shadows = []
    for part, marks in zip(parts, known, strict=True):
        if marks is not None:
            shadows.append(marks)
        elif not stacked and dim in differ:
            pinned = flow.channels.new(part.shape[dim])
            flow.channels.pin(pinned, "it is joined with a tensor of a size that no cut changes")
            shadows.append(along(pinned, part.ndim + dim, part.shape))
        else:
            shadows.append(_beside(flow, part, parts, known, dim))
    flow.mark(result, func(shadows, *args[1:], **kwargs))


def _beside(flow: "Flow", part: Tensor, parts: Any, known: Any, dim: int) -> Tensor:
    """Marks of a part without channels that stands before or after others: of tokens, a class token."""
    marks: Tensor = next(m for m in known if m is not None)
    if dim + marks.ndim not in varying(marks) and marks.ndim == part.ndim:
        marks = resized(marks, part.shape)
        if not flow.touch(part, marks):
            _fix(flow, part, marks)
        return marks
    return none_of(part.shape)


def _dims(func: Any, args: Any, kwargs: Any) -> list[int]:
    """The dimensions that an operator reduces."""
    names = [argument.name for argument in func._schema.arguments]
    ndim = args[0].ndim
    place = names.index("dim") if "dim" in names else None
    given = kwargs.get("dim")
    if given is None and place is not None:  # what equals the default is not handed over
        given = args[place] if place < len(args) else func._schema.arguments[place].default_value
    if given is None or given == []:
        return list(range(ndim))
    return [d % ndim for d in ([given] if isinstance(given, int) else given)]


def _reduce(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    marks = flow.marks(args[0])
    results = outputs(result)
    if marks is None or not results:
        return
    dims = _dims(func, args, kwargs)
    left = _mixed_along(flow, func, marks, dims, result)
    if left is None:
        return
    for dim in sorted(dims, reverse=True):
        left = left.narrow(dim, 0, 1) if results[0].ndim == marks.ndim else left.select(dim, 0)
    for output in results:
        flow.mark(output, left)


def _mixed_along(
    flow: "Flow", func: Any, marks: Tensor, dims: Sequence[int], result: Any
) -> Tensor | None:
    """Tie channels along dimensions; None if they lie along no other, and the result is a mixture."""
    differ = varying(marks)
    if all(dim in dims for dim in differ):
        flow.mix(marks, _mixed(func), result)
        return None
    for dim in dims:
        if dim in differ:
            flow.channels.tie_along(marks, dim)
    return marks


def _along(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    marks = flow.marks(args[0])
    if marks is not None:
        left = _mixed_along(flow, func, marks, _dims(func, args, kwargs), result)
        for output in outputs(result):
            flow.mark(output, left)


def _spatial(flow: "Flow", func: Any, args: Any, kwargs: Any, result: Any) -> None:
    marks = flow.marks(args[0])
    if marks is None:
        return
    name = func._overloadpacket.__name__
    places = next((size for size in (1, 2, 3) if f"{size}d" in name), args[0].ndim - 2)
    dims = range(marks.ndim - places, marks.ndim)
    if _mixed_along(flow, func, marks, dims, result) is not None:
        for dim in dims:
            marks = marks.narrow(dim, 0, 1)
        for output in outputs(result):
            flow.mark(output, resized(marks, output.shape))


NEW = {"new_zeros", "new_ones", "new_empty", "new_full"}
RULES: tuple[tuple[set[str], Rule], ...] = (
    (VIEWS, moving.view),
    ({"index"}, moving.index),
    (MOVES, moving.move),
    (SAME, moving.same),
    (POINTWISE, _pointwise),
    (NORMS, _norm),
    ({"convolution"}, _convolution),
    ({"glu"}, moving.glu),
    (JOINS, _join),
    (REDUCTIONS, _reduce),
    (ALONG, _along),
    (SPLITS, moving.split),
    (PICKS, moving.pick),
    ({"pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"}, moving.pad),
    (NEW, moving.made_like),
    ({"roll"}, moving.roll),
    ({"channel_shuffle", "native_channel_shuffle"}, moving.shuffle),
)
