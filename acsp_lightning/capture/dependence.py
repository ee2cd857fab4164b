"""What a loss was computed from, by its autograd graph."""

from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def depends_on(loss: Tensor, scores: Tensor, outputs: Iterable[Tensor]) -> bool:
    """Whether gradients flow from a loss through those outputs of a network that scores were read from.

    Nodes are compared, not tensors: where one compiled graph returns both, the loss counts as dependent.

    Args:
        loss: before its backward pass.
        scores: one of ``outputs``, or computed from them.
        outputs: all that the network returned.
    """
    made = {tensor.grad_fn for tensor in outputs}
    sources: set[Node | None] = {node for node in _history(scores, made) if node in made}
    sources = sources or {scores.grad_fn}
    return any(node in sources for node in _history(loss, sources))


def _history(tensor: Tensor, ends: Collection[Node | None]) -> Iterator[Node]:
    """The nodes of a graph, from the tensor backward, and not beyond ``ends``; a leaf has none."""
    seen: set[Node] = set()
    waiting: list[Node | None] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            if node not in ends:
                waiting += [before for before, _ in node.next_functions]
