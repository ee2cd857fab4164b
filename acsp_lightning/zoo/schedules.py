"""Learning rates for training that restarts with every cut."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RestartingStepLR"]


class RestartingStepLR(LRScheduler):
    """Decays once in every period, and restarts with the next.

    With the epoch e counted from 0 and ``e >= start``, the learning rate is the optimizer's initial one
    in the first ``step_size`` epochs of every period, and ``gamma`` times that in the rest of it.
    Before ``start`` it is ``before`` times the initial one. The layer-by-layer recipes cut a layer at
    the start of each period and fine-tune with this schedule.

    Args:
        optimizer: wrapped optimizer.
        period: length of a period in epochs, at least 2.
        step_size: epochs before the decay, in [1, period).
        gamma: factor after the decay, at least 0.
        start: first epoch of the first period, at least 0.
        before: factor in the epochs before ``start``, at least 0; 0 leaves the weights unchanged.
        last_epoch: index of the last epoch; -1 at the beginning.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        period: int,
        step_size: int,
        gamma: float = 0.5,
        start: int = 0,
        before: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        if not 1 <= step_size < period:
            raise ValueError(
                f"step_size is {step_size} and period {period}; the fall must come at least one epoch "
                "after the start of a period, and before its end."
            )
        if min(start, gamma, before) < 0:
            raise ValueError(
                f"start is {start}, gamma {gamma} and before {before}; all must be at least 0."
            )
        self.period = period
        self.step_size = step_size
        self.gamma = gamma
        self.start = start
        self.before = before
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of every parameter group in the current epoch."""
        factor = self._factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def _factor(self, epoch: int) -> float:
        if epoch < self.start:
            return self.before
        return self.gamma if (epoch - self.start) % self.period >= self.step_size else 1.0
