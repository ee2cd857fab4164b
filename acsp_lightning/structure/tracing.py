"""Which sides of which layers lose the same channels.

Torch-Pruning is used here, and nowhere else, as a read-only tracer: its index maps are copied into
plain :class:`ChannelGroup` objects and none of its own objects outlives the call.
"""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch_pruning.dependency import index_mapping, shape_infer

from acsp_lightning.structure.forward import (
    CHECKPOINTED,
    UnsupportedStructureError,
    call_counts,
    counted,
    evaluation_state,
    is_checkpointed,
    output_tensors,
    run_forward,
)
from acsp_lightning.structure.groups import ChannelGroup, Tracing
from acsp_lightning.structure.joins import Joins
from acsp_lightning.structure.layers import (
    Side,
    has_one_slope,
    is_producer,
    refusal,
    side_width,
)
from acsp_lightning.structure.reach import Network, NotCuttableError, Reach, as_group


def trace_groups(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    residual: bool = False,
) -> Tracing:
    """Find the groups of channels of ``model`` that can be cut, as far as their layers can tell.

    Channels that reach the network's output unmixed (the classifier) are never offered. That a cut
    is also numerically right is the business of
    :func:`acsp_lightning.structure.verification.verify_groups`.

    Args:
        model: any module; left as it was.
        inputs: example arguments of ``forward``.
        include: shell patterns on qualified layer names; a group is asked for if a layer that makes
            its channels matches one of these...
        exclude: ...and no layer that makes its channels matches one of those.
        residual: also ask for the groups that run through residual sums.

    Returns:
        The groups in order of execution, and what was left whole with the reason.

    Raises:
        UnsupportedStructureError: if ``forward(*inputs)`` fails, calls no convolution or linear layer,
            or cannot be followed by the tracer.
        ValueError: if a pattern matches no layer.
    """
    _check_patterns(model, include, exclude)
    _check_initialised(model)
    modules = dict(model.named_modules())
    with evaluation_state(model, grad=True):
        graph, calls = _build_graph(model, inputs)
        network = Network.of(model, calls)
        identity = _identity(model)
        groups: list[ChannelGroup] = []
        summed: list[str] = []
        left_whole = {
            name: "it is a recurrent layer"
            for name in calls
            if isinstance(modules[name], nn.RNNBase | nn.RNNCellBase)
        }
        seen: set[str] = set()
        for root in (name for name in calls if is_producer(modules[name])):
            if root in seen:
                continue
            if modules[root] not in graph.module2node:
                if _asked_for([root], include, exclude):
                    left_whole[root] = _unreached(model, inputs)
                continue
            reach = _follow(graph, root, network, identity)
            members = [name for name in calls if (name, "out") in reach.sides]
            members = [name for name in members if is_producer(modules[name])]
            if reach.reason is None:  # else the walk may have strayed into other groups
                seen.update(members)
            if not _asked_for(members, include, exclude):
                continue
            if reach.residual and not residual:
                if reach.reason is None and not reach.is_output:
                    summed += members
                continue
            try:
                group = as_group(reach, network)
            except NotCuttableError as error:
                left_whole[root] = str(error)
            else:
                if group is not None:
                    groups.append(group)
    return Tracing(tuple(groups), left_whole, tuple(summed))


def _unreached(model: nn.Module, inputs: tuple[Any, ...]) -> str:
    reason = "no gradient runs from the network's output to it"
    return f"{reason}; {CHECKPOINTED[:-1]}" if is_checkpointed(model, inputs) else reason


class _Pair(NamedTuple):
    """A position of a layer and the channel it carries, under the names that index maps read."""

    idx: int
    root_idx: int


def _asked_for(producers: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    return any(_matches(name, include) for name in producers) and not any(
        _matches(name, exclude) for name in producers
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> None:
    names = [name for name, module in model.named_modules() if is_producer(module)]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if pattern != "*" and not any(_matches(name, (pattern,)) for name in names):
                close = get_close_matches(pattern, names, n=1, cutoff=0.0)
                hint = f" The nearest is {close[0]!r}." if close else ""
                raise ValueError(
                    f"{argument} has {pattern!r}, which matches no convolution or linear layer of "
                    f"{type(model).__name__}.{hint} Give qualified names as in named_modules(), or "
                    "shell patterns such as '*conv1'."
                )


def _check_initialised(model: nn.Module) -> None:
    """Refuse lazy layers: the first forward pass, which would be ours, turns them into others."""
    lazy = [name for name, module in model.named_modules() if _is_lazy(module)]
    if lazy:
        raise UnsupportedStructureError(
            f"{lazy[0]!r} is a lazy layer that is not initialised yet. Run the network once on a batch "
            "before it is traced (and before its optimizer is made)."
        )


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


@contextmanager
def _hooks_put_back(model: nn.Module) -> Iterator[None]:
    """Remove the forward hooks that the body added; the tracer leaves its own behind if it fails."""
    before = [(module, dict(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks in before:
            for key in set(module._forward_hooks) - set(hooks):
                del module._forward_hooks[key]


@contextmanager
def _single_values_frozen(model: nn.Module) -> Iterator[None]:
    """Hide parameters of one value, which every channel shares, from the tracer."""
    single = [p for p in model.parameters() if p.requires_grad and p.numel() == 1]
    try:
        for parameter in single:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in single:
            parameter.requires_grad_(True)


def _build_graph(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[tp.DependencyGraph, Mapping[str, int]]:
    """The tracer's graph, and how often forward calls every layer, from one forward pass."""
    graph, joins, calls = tp.DependencyGraph(), Joins(), Counter[str]()

    def forward(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
        with joins, counted(model) as counts:
            outputs = run_forward(model, inputs)
        calls.update(counts)
        return outputs

    try:
        with warnings.catch_warnings(), _hooks_put_back(model), _single_values_frozen(model):
            # The tracer announces what it guesses; nothing guessed passes our own checks.
            warnings.simplefilter("ignore")
            graph.build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=forward,
                # Taken for layers of one channel, these would end every group.
                ignored_layers=[module for module in model.modules() if has_one_slope(module)],
                output_transform=_differentiable_outputs,
                verbose=False,
            )
        _map_flattened_concats(graph)
    except Exception as error:
        _check_producers(model, call_counts(model, inputs))  # which raises if forward fails by itself
        traced = getattr(graph, "module2node", None)
        if not traced or not isinstance(error, ZeroDivisionError | TypeError):
            if is_checkpointed(model, inputs):
                raise UnsupportedStructureError(
                    f"The tracer could not follow {type(model).__name__}.forward: {CHECKPOINTED}"
                ) from error
            raise UnsupportedStructureError(
                f"The tracer could not follow {type(model).__name__}.forward: "
                f"{type(error).__name__}: {error}. Its outputs must be tensors (or nested lists, "
                "tuples, dicts or dataclasses of them) that depend on the parameters."
            ) from error
        # The index maps are the last step. Shuffles divide by zero there, and concatenations of parts
        # whose width is unknown add None. What is wrong without their maps passes no check of ours.
        _map_indices(graph)
    _check_producers(model, calls)
    _map_joins(graph, joins)
    return graph, calls


def _check_producers(model: nn.Module, calls: Mapping[str, int]) -> None:
    if not any(is_producer(model.get_submodule(name)) for name in calls):
        raise UnsupportedStructureError(
            f"{type(model).__name__}.forward calls no convolution or linear layer; there is "
            "nothing to prune."
        )


def _map_joins(graph: tp.DependencyGraph, joins: Joins) -> None:
    """Make the index maps of what is joined with constants, which the tracer does not see."""
    for node in graph.module2node.values():
        for part, span in zip(node.inputs, joins.spans.get(node.grad_fn, ()), strict=False):
            _concat_edge(node, part).index_mapping[1] = index_mapping._ConcatIndexMapping(span, True)
            _concat_edge(part, node).index_mapping[1] = index_mapping._ConcatIndexMapping(span, False)


def _map_flattened_concats(graph: tp.DependencyGraph) -> None:
    """Make the index maps of concatenations that a linear layer reads after a flatten.

    The tracer compares the sum of the parts with the width of the next layer, finds a multiple of it,
    and takes the concatenation for one of positions instead of channels.
    """
    for node in graph.module2node.values():
        if not isinstance(node.module, tp.ops._ConcatOp) or node.module.offsets is not None:
            continue
        parts = node.module.concat_sizes
        read = shape_infer.infer_in_channels_recursively(graph, node, recursive_depth=[0])
        if parts and None not in parts and read and read % sum(parts) == 0 and read > sum(parts):
            starts = list(accumulate(parts, initial=0))
            for part, span in zip(node.inputs, pairwise(starts), strict=True):
                _concat_edge(node, part).index_mapping[1] = index_mapping._ConcatIndexMapping(span, True)
                _concat_edge(part, node).index_mapping[1] = index_mapping._ConcatIndexMapping(
                    span, False
                )


def _concat_edge(source: Any, target: Any) -> Any:
    """The first edge between two nodes of the tracer that has no map of a concatenation yet."""
    edges = [edge for edge in source.dependencies if edge.target is target]
    return next((edge for edge in edges if edge.index_mapping[1] is None), edges[-1])


def _map_indices(graph: tp.DependencyGraph) -> None:
    """Make the index maps of every operator, where that is possible."""
    makers = (
        index_mapping.update_concat_index_mapping,
        index_mapping.update_split_index_mapping,
        index_mapping.update_reshape_index_mapping,
        index_mapping.update_unbind_index_mapping,
        index_mapping.update_expand_index_mapping,
        index_mapping.update_slice_index_mapping,
    )
    for node in graph.module2node.values():
        for make in makers:  # each passes over nodes that are not of its kind
            with suppress(ZeroDivisionError, TypeError):
                make(graph, node)


def _differentiable_outputs(outputs: Any) -> list[Tensor]:
    tensors = [tensor for tensor in output_tensors(outputs) if tensor.grad_fn is not None]
    if not tensors:
        raise ValueError(f"found none in its outputs, a {type(outputs).__name__}")
    return tensors


def _identity(model: nn.Module) -> list[_Pair]:
    """Every position with the channel of the same number, as many as the widest layer has."""
    sides: tuple[Side, ...] = ("out", "in")
    widths = [
        side_width(module, side)
        for module in model.modules()
        if is_producer(module) and refusal(module) is None
        for side in sides
    ]
    return [_Pair(channel, channel) for channel in range(max(widths, default=0))]


def _follow(graph: tp.DependencyGraph, root: str, network: Network, identity: Sequence[_Pair]) -> Reach:
    """Carry the channels of ``root`` along the tracer's edges, through its index maps.

    The tracer's own walk multiplies indices without end where they are permuted (shifted windows).
    Here a position takes the first channel that reaches it, a second one is a reason to refuse, and
    so is a position beyond the widest layer; so the walk ends.
    """
    layer = network.model.get_submodule(root)
    reason = refusal(layer)
    if reason is not None:
        return Reach({(root, "out"): {}}, residual=False, is_output=False, reason=reason)
    start = (graph.module2node[layer], graph.get_pruner_of_module(layer).prune_out_channels)
    pairs = list(identity[: side_width(layer, "out")])
    carried = {start: dict(pairs)}
    frontier = [(*start, pairs)]
    while frontier and reason is None:
        node, function, pairs = frontier.pop()
        for edge in node.dependencies:
            if not edge.is_triggered_by(function):
                continue
            try:
                arrived = _through(edge.index_mapping, pairs)
            except Exception as error:  # index maps of some operators (shuffles) fail
                reason = f"the tracer cannot follow its channels ({error!r})"
                break
            place = carried.setdefault((edge.target, edge.handler), {})
            fresh = [pair for pair in arrived if pair.idx not in place and pair.idx < len(identity)]
            place.update(fresh)
            if not place.items() >= set(arrived):
                reason = "its channels are mixed with one another"
                break
            if fresh:
                frontier.append((edge.target, edge.handler, fresh))
    return _summary(graph, carried, reason, network)


def _through(mappings: Sequence[Any], pairs: list[_Pair]) -> list[_Pair]:
    for mapping in mappings:
        pairs = pairs if mapping is None else mapping(pairs)
    return pairs


def _summary(
    graph: tp.DependencyGraph,
    carried: Mapping[tuple[Any, Any], dict[int, int]],
    reason: str | None,
    network: Network,
) -> Reach:
    """What was reached, in names of layers; the first obstacle becomes the reason."""
    sides: dict[tuple[str, Side], Mapping[int, int]] = {}
    for (node, function), mapping in carried.items():
        if isinstance(node.module, nn.Parameter):
            reason = reason or _parameter_reason(network.model, node.module)
        elif node.module in network.names and mapping:
            name = network.names[node.module]
            reason = reason or _layer_reason(name, node.module, network.calls)
            side: Side = "out" if graph.is_out_channel_pruning_fn(function) else "in"
            sides[name, side] = mapping
    nodes = [node for (node, _), mapping in carried.items() if mapping]
    return Reach(
        sides,
        residual=any(_is_sum(node) for node in nodes),
        is_output=any(isinstance(node.module, tp.ops._OutputOp) for node in nodes),
        reason=reason,
    )


def _parameter_reason(model: nn.Module, parameter: nn.Parameter) -> str:
    name = next(name for name, p in model.named_parameters() if p is parameter)
    owner = model.get_submodule(name.rpartition(".")[0])
    if is_producer(owner) or isinstance(owner, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        reason = refusal(owner) or "forward reads it past its layer"
    else:
        reason = "a parameter outside of the layers that can be cut"
    return f"its channels meet {name!r}: {reason}"


def _layer_reason(name: str, module: nn.Module, calls: Mapping[str, int]) -> str | None:
    reason = refusal(module)
    if reason is not None:
        return f"its channels run through {name!r}: {reason}"
    if calls.get(name, 0) != 1:
        return f"forward calls {name!r} {calls.get(name, 0)} times; only layers called once are cut"
    return None


def _is_sum(node: Any) -> bool:
    """Whether a node of the tracer adds two or more tensors that the network computed."""
    operator = isinstance(node.module, tp.ops._ElementWiseOp)
    computed = [part for part in node.inputs if not isinstance(part.module, nn.Parameter)]
    return operator and "AddBackward" in node.grad_fn.name() and len(computed) > 1
