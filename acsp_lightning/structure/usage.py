"""Which parameters of a network its forward uses."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from acsp_lightning.structure.evaluation import evaluation_state, train_mode
from acsp_lightning.structure.forward import run_forward


class _Reads(TorchFunctionMode):
    """Notes every parameter that a function of torch is given, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Whoever asks for a device or a shape reads no values.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            leaves = tree_leaves((args, kwargs))
            self.seen.update(id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter))
        return result


def unused_parameters(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """How many parameters ``forward`` uses neither in eval nor in train mode, and where they are.

    Used are those of all modules that it calls, and those that are read past their modules.

    Args:
        model: any module whose ``forward(*inputs)`` works in eval mode; left as it was.
        inputs: arguments of forward.

    Returns:
        Scalars by the name of the outermost submodule of which nothing is used, such as a teacher.
    """
    used: set[int] = set()

    def note(module: nn.Module, _arguments: object) -> None:
        used.update(map(id, module.parameters(recurse=False)))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with evaluation_state(model), _Reads() as reads:
            run_forward(model, inputs)
            try:
                with train_mode(model):
                    run_forward(model, inputs)
            except Exception:
                pass  # train mode wants other inputs; nothing can be told of it
    finally:
        for handle in handles:
            handle.remove()
    used |= reads.seen
    idle = {name: p for name, p in model.named_parameters() if id(p) not in used}
    busy = {owner for name, p in model.named_parameters() if id(p) in used for owner in _owners(name)}
    counts: dict[str, int] = {}
    for name, parameter in idle.items():
        owner = next(owner for owner in _owners(name) if owner not in busy)
        counts[owner] = counts.get(owner, 0) + parameter.numel()
    return counts


def _owners(name: str) -> list[str]:
    """The submodules that hold a parameter, outermost first, and the parameter itself."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
