"""A target in time: met on the path of least damage, checked on networks that are really cut."""

from collections.abc import Mapping

import numpy as np

from acsp_lightning.measure.latency import Latency
from acsp_lightning.selection.clock import Clock
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.network_times import LayerTime, NetworkTimes, TimeCheck
from acsp_lightning.selection.path import DamagePath, cheaper_widths
from acsp_lightning.selection.time_model import TimedLayer, TimeModel

MOST_CHECKS = 3
CLOSE = 0.02  # of the target: it is met


class Deadline:
    """Finds the widths of least damage within a share of the time of a network.

    The time of the network is taken to be a function of the sum of its layers' times that is linear
    between the networks that were timed: at first the uncut one and the smallest. What lies between the
    layers, and what they take more or less in a network than by themselves, is part of that.

    Args:
        clock: times the network and its layers.
        asked: share of the time of the first uncut network, in (0, 1].
        taken: share of that time that the network takes now, after earlier cuts.
    """

    def __init__(self, clock: Clock, asked: float, taken: float = 1.0) -> None:
        self._clock = clock
        self._asked = asked
        self._taken = taken
        self._layers: tuple[TimedLayer, ...] | None = None
        self._model: TimeModel | None = None
        self._checks: list[TimeCheck] = []
        self._shares: dict[float, float] = {}  # of the time, by the sum of the layers' times
        self._foreseen: dict[float, float] = {}  # the same as predicted before they were timed
        self._smallest: Mapping[str, int] = {}

    def path(self, curves: Mapping[str, DamageCurve]) -> DamagePath:
        """The path of least damage per second saved.

        Widths that are no faster than a larger one are left out: rounding follows from measurement.

        Args:
            curves: damage of every group.
        """
        self._layers = self._clock.layers({name: curve.ks[:-1] for name, curve in curves.items()})
        self._model = self._clock.model(self._layers)
        return DamagePath.of(cheaper_widths(curves, self._model), self._model)

    def widths(self, path: DamagePath) -> Mapping[str, int]:
        """The widths that meet the target best, of up to :data:`MOST_CHECKS` that were checked.

        Args:
            path: as :meth:`path` returns it.

        Raises:
            ValueError: if the smallest network takes longer, or passes of the uncut one differ by more
                than is to be gained.
        """
        target = self._asked / self._taken
        full, smallest = path.stages[0].widths, path.stages[-1].widths
        if target >= 1:
            return full
        self._smallest = smallest
        compared = self._clock.compared(smallest)
        least = 1 / compared.speedup
        _check_noise(self._asked, target, compared.before)
        if least > target:
            raise ValueError(self._unreachable(compared.before, compared.after))
        self._shares = {path.full: 1.0, path.least: least}
        found: list[tuple[float, Mapping[str, int]]] = [(abs(least - target), smallest)]
        for _ in range(MOST_CHECKS):
            budget = self._inverse(target)
            widths = path.within(max(budget, path.least)) or smallest
            if any(widths == known for _, known in found):
                break  # there is nothing in between
            total = path.costs.total(widths)
            predicted = self.share(total)
            measured = 1 / self._clock.compared(widths).speedup
            self._checks.append(TimeCheck(predicted, measured))
            self._foreseen[total] = predicted
            self._shares[total] = measured
            found.append((abs(measured - target), widths))
            if abs(measured - target) <= CLOSE * target:
                break
        return min(found, key=lambda entry: entry[0])[1]

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Predicted time of the network with some widths; None before :meth:`widths`."""
        if self._model is None or not self._shares:
            return None
        uncut = self._clock.compared(self._smallest).before.median
        return uncut * self.share(self._model.total(widths))

    def share(self, seconds: float) -> float:
        """Share of the network's time that is predicted for a sum of its layers' times."""
        sums = sorted(self._shares)
        return float(np.interp(seconds, sums, [self._shares[total] for total in sums]))

    def _inverse(self, share: float) -> float:
        """The largest sum of the layers' times for which at most a share is predicted."""
        sums = sorted(self._shares)
        # By chance a network of slower layers may have been faster.
        rising = np.maximum.accumulate([self._shares[total] for total in sums])
        return float(np.interp(share, rising, sums))

    def times(self, widths: Mapping[str, int]) -> NetworkTimes:
        """The record of a cut.

        Args:
            widths: number of channels of every group that is cut.
        """
        layers = self._layers if self._layers is not None else self._clock.layers({})
        before, after = self._clock.seconds(layers, {}), self._clock.seconds(layers, widths)
        model = self._model
        found = {
            name: LayerTime(before[name], None if model is None else model.of(name, widths), after[name])
            for name in before
        }
        network = self._clock.compared(widths)
        return NetworkTimes(
            asked=self._asked,
            taken=self._taken,
            at=self._clock.at,
            network=network,
            predicted=self._predicted(widths),
            smallest=min(self._shares.items())[1] if self._shares else None,
            checks=tuple(self._checks),
            layers=found,
            spent=self._clock.spent,
        )

    def _predicted(self, widths: Mapping[str, int]) -> float | None:
        """The share that was predicted for a network before it was timed itself."""
        if self._model is None or not self._shares:
            return None
        total = self._model.total(widths)
        return self._foreseen.get(total, self.share(total))

    def _unreachable(self, before: Latency, after: Latency) -> str:
        least = self._taken * after.median / before.median
        goal = 1000 * self._asked / self._taken * before.median
        return (
            f"selection.latency={self._asked} asks for {goal:.3g} ms a pass ({self._clock.at}, "
            f"{before.device}), but the network takes {1000 * after.median:.3g} ms if it is cut as far "
            f"as min_channels and round_to allow: latency={least:.3f}, of {1000 * before.median:.3g} ms "
            "uncut. Raise latency, include more layers, or set residual=True."
        )


def _check_noise(asked: float, target: float, uncut: Latency) -> None:
    """Refuse a gain that two standard errors of the median would hide."""
    first, third = (1000 * quartile for quartile in uncut.quartiles)
    median, gain = 1000 * uncut.median, 1000 * (1 - target) * uncut.median
    # Of normally distributed times.
    noise = 2 * 0.93 * (third - first) / uncut.runs**0.5
    if noise > gain:
        raise ValueError(
            f"selection.latency={asked} is to save {gain:.3g} of {median:.3g} ms a pass, but "
            f"{uncut.runs} passes of the uncut network tell its time to ± {noise:.3g} ms alone "
            f"(quartiles {first:.3g} and {third:.3g} ms). Ask for more, time where nothing else "
            "runs, or raise latency_at.batch_size."
        )
