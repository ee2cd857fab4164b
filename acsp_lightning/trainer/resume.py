"""Going on from a checkpoint: is the file whole, and what does the Trainer skip?"""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from acsp_lightning.files import verify_checksums


def verify_before_load(module: nn.Module, path: Callable[[], Any]) -> RemovableHandle:
    """Let ``load_state_dict`` of ``module`` check first that the file behind it is intact, once.

    Args:
        module: whose weights the file holds.
        path: returns the file once it is known; None, and what is no local file, is passed over.
    """
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(_Verifier(path))  # type: ignore[no-untyped-call]
    return handle


class _Verifier:
    """A hook that checks files; copies of a module, and pickled ones, have one that checks none."""

    def __init__(self, path: Callable[[], Any] = lambda: None) -> None:
        self._path = path
        self._checked: set[str] = set()

    def __call__(self, *_: object) -> None:
        source = str(self._path() or "")
        if source not in self._checked and Path(source).is_file():
            verify_checksums(source)
        self._checked.add(source)

    def __reduce__(self) -> tuple[type["_Verifier"], tuple[()]]:
        return _Verifier, ()


def fix_loop_progress(checkpoint: Mapping[str, Any], epochs: Container[int]) -> None:
    """Let the Trainer skip nothing that was still to come when a checkpoint was written.

    Lightning takes a validation that was due when the checkpoint was written, right after the last
    batch of an epoch, for done, and goes on in the middle of one that was under way: the captured
    activations would be missing or partial. It takes an epoch for done whose checkpoint was written in
    ``on_train_epoch_start``, as the one of the network before a cut is.

    Args:
        checkpoint: a Lightning checkpoint, changed in place before its loops are restored.
        epochs: epochs whose validation must be whole.
    """
    loops = checkpoint["loops"]["fit_loop"]
    total, current = loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]
    if total["ready"] > total["started"]:
        _begin_epoch(loops)
    elif current["started"] > current["processed"] and current["processed"] in epochs:
        _finish_epoch(loops)


def _begin_epoch(loops: Mapping[str, Any]) -> None:
    """Forget the counts of the epoch before, as the Trainer does a moment later."""
    batch = loops["epoch_loop.batch_progress"]
    batch["is_last_batch"] = False
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    scheduler = loops["epoch_loop.scheduler_progress"]
    for progress in (batch, scheduler, optimizer["step"], optimizer["zero_grad"]):
        _set_all(progress["current"], 0)
    _set_all(loops["epoch_loop.val_loop.batch_progress"]["total"], 0)


def _finish_epoch(loops: Mapping[str, Any]) -> None:
    """Have the validation done from its first batch, unless it was over; training batches come first."""
    batch, val = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    seen = val["current"]
    trained = batch["current"]["completed"] == batch["current"]["processed"]
    over = trained and val["is_last_batch"] and seen["completed"] == seen["ready"] > 0
    if over or not batch["is_last_batch"]:
        return
    for counts in (batch["total"], batch["current"]):
        counts["completed"] = counts["processed"]
    # As if interrupted in the first batch: that is where the Trainer begins then.
    val["is_last_batch"] = False
    for counts in (val["total"], val["current"]):
        counts.update(ready=1, started=1, processed=0, completed=0)


def _set_all(counts: dict[str, int], value: int) -> None:
    counts.update(dict.fromkeys(counts, value))
