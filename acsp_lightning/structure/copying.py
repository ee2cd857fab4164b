"""Copies of networks."""

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acsp_lightning.structure.evaluation import log_nothing, uncompiled

M = TypeVar("M", bound=nn.Module)


def eager_copy(model: M, shared: Iterable[nn.Parameter] = ()) -> M:
    """A deep copy of ``model``, without what ``torch.compile`` made of it.

    Compiled callables would not be copied but shared, and run the weights of ``model``. Tensors with a
    history, such as a loss that the module keeps or a weight that a hook computes, are copied without
    it; PyTorch refuses to copy them. Factories are shared: one from a command line holds that, its
    Trainer, and all the processes that this one has. A LightningModule's forward may ask the copy for
    its Trainer, but logs nothing: these would be the values of another network.

    Args:
        model: any module.
        shared: parameters whose memory the copy shares, because a cut is about to replace it; until then
            nobody may write to it. Those of other classes and inference tensors are copied all the same.

    Raises:
        TypeError: if an attribute cannot be copied: names it.
    """
    usual = [p for p in shared if type(p) is nn.Parameter and not p.is_inference()]
    aliases = {id(p): nn.Parameter(p.data, p.requires_grad) for p in usual}
    with uncompiled(model):
        copied = _copied(model, {**_with_history(model), **_factories(model), **aliases})
    _attach(copied, model)
    return copied


def check_copyable(model: nn.Module) -> None:
    """Raise ``TypeError`` where :func:`eager_copy` would; parameters and buffers are not copied."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    with uncompiled(model):
        _copied(model, {**_with_history(model), **_factories(model), **shared})


def _copied(model: M, memo: dict[int, Any]) -> M:
    try:
        return deepcopy(model, dict(memo))
    except Exception as error:
        named = _uncopyable(model, memo)
        if named is None:
            raise
        name, value = named
        raise TypeError(
            f"A copy of {type(model).__name__} is needed, but its attribute {name!r} "
            f"({type(value).__name__}) cannot be copied: {error}. Keep it elsewhere, or leave it out in "
            "the __getstate__ of its owner."
        ) from error


def _attach(copied: nn.Module, model: nn.Module) -> None:
    """Let the LightningModules in a copy know the Trainer of the original, which they cannot copy."""
    copies = dict(copied.named_modules())
    for name, module in model.named_modules():
        trainer = vars(module).get("_trainer")
        if trainer is not None and name in copies:
            copies[name].__dict__.update(_trainer=trainer, log=log_nothing)  # log_dict calls log


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> tuple[str, Any] | None:
    """The first attribute of a module that cannot be copied, with its name; modules have their own."""
    others = {**memo, **{id(module): module for module in model.modules()}}
    for name, module in model.named_modules():
        for key, value in module.__getstate__().items():
            try:
                deepcopy(value, dict(others))
            except Exception:
                return f"{name}.{key}".lstrip("."), value
    return None


def _factories(model: nn.Module) -> dict[int, Any]:
    """Functions with arguments that hold no part of a network, by identity."""
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(f): f for f in held if isinstance(f, partial) and not _holds_part(f)}


def _holds_part(function: "partial[Any]") -> bool:
    """Whether a function with arguments has parts of a network among them, or is a method of one."""
    held = (getattr(function.func, "__self__", None), function.args, function.keywords)
    return any(isinstance(leaf, nn.Module | Tensor) for leaf in tree_leaves(held))


def _with_history(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors with a history that modules hold, by identity, as deepcopy looks them up."""
    held = (leaf for m in model.modules() for value in vars(m).values() for leaf in tree_leaves(value))
    return {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
