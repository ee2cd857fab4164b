"""A target in time: met on the path of least damage, checked on networks that are really cut."""

from collections.abc import Mapping, Sequence

from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.selection.clock import Clock
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.forecast import Forecast
from acsp_lightning.selection.network_times import LayerTime, NetworkTimes, TimeCheck
from acsp_lightning.selection.path import DamagePath, cheaper_widths
from acsp_lightning.selection.time_model import TimedLayer, TimeModel

MOST_CHECKS = 3
CLOSE = 0.02  # of the target: it is met


class Deadline:
    """Finds the widths of least damage within a share of the time of a network.

    Args:
        clock: times the network and its layers.
        candidates: numbers of channels below the full one at which layers are timed, ascending, by name
            of the group.
        asked: share of the time of the first uncut network, in (0, 1].
        taken: share of that time that the network takes now, after earlier cuts.
    """

    def __init__(
        self, clock: Clock, candidates: Mapping[str, Sequence[int]], asked: float, taken: float = 1.0
    ) -> None:
        self.candidates = candidates
        self._clock = clock
        self._asked = asked
        self._taken = taken
        self._layers: tuple[TimedLayer, ...] | None = None
        self._model: TimeModel | None = None
        self._forecast: Forecast | None = None
        self._uncut = 0.0
        self._checks: list[TimeCheck] = []

    def check(self) -> None:
        """Check that the smallest network meets the target, and that it asks for more than noise.

        Raises:
            ValueError: if it takes longer, or the ratio of both times is known less closely than what
                is to be gained.
        """
        if not self._is_met:
            self._compared({name: ks[0] for name, ks in self.candidates.items() if ks})

    @property
    def _is_met(self) -> bool:
        """Whether the network is as fast as was asked for: what is left of a share is within noise."""
        near = CLOSE if self._taken < 1 else 0.0  # of an earlier cut
        return self._taken <= (1 + near) * self._asked

    def _compared(self, smallest: Mapping[str, int]) -> LatencyComparison:
        """The uncut network and the smallest, if :meth:`check` has nothing against them."""
        target = self._asked / self._taken
        found = self._clock.compared(smallest)
        _check_noise(self._asked, target, found)
        if 1 / found.speedup > (1 + CLOSE) * target:
            where = f"{self._clock.at}, {found.before.device}"
            times = found.before.median, found.before.median / found.speedup
            first, third = (1000 * quartile for quartile in found.before.quartiles)
            refusal = unreachable(self._asked, self._taken, times, where)
            raise ValueError(
                f"{refusal} If passes vary (quartiles of the uncut network: {first:.3g} and {third:.3g} "
                "ms), time where nothing else runs."
            )
        return found

    def path(self, curves: Mapping[str, DamageCurve]) -> DamagePath:
        """The path of least damage per second saved.

        Widths that are no faster than a larger one are left out: rounding follows from measurement.

        Args:
            curves: damage of every group at its candidates, and uncut.
        """
        self._layers = self._clock.layers(self.candidates)
        self._model = self._clock.model(self._layers)
        return DamagePath.of(cheaper_widths(curves, self._model), self._model)

    def widths(self, path: DamagePath) -> Mapping[str, int]:
        """The widths that meet the target best, of up to :data:`MOST_CHECKS` that were checked.

        Args:
            path: as :meth:`path` returns it.

        Raises:
            ValueError: as :meth:`check`.
        """
        if self._is_met:
            return path.stages[0].widths
        target, smallest = self._asked / self._taken, path.stages[-1].widths
        compared = self._compared(smallest)
        self._uncut, least = compared.before.median, 1 / compared.speedup
        self._forecast = Forecast({path.full: 1.0, path.least: least})
        found: list[tuple[float, Mapping[str, int]]] = [(abs(least - target), smallest)]
        for _ in range(MOST_CHECKS):
            widths = path.within(max(self._forecast.total(target), path.least)) or smallest
            if any(widths == known for _, known in found):
                break  # there is nothing in between
            measured = 1 / self._clock.compared(widths).speedup
            predicted = self._forecast.learn(path.costs.total(widths), measured)
            self._checks.append(TimeCheck(predicted, measured))
            found.append((abs(measured - target), widths))
            if abs(measured - target) <= CLOSE * target:
                break
        return min(found, key=lambda entry: entry[0])[1]

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Predicted time of the network with some widths; None before :meth:`widths`."""
        if self._model is None or self._forecast is None:
            return None
        return self._uncut * self._forecast.share(self._model.total(widths))

    def times(self, widths: Mapping[str, int]) -> NetworkTimes:
        """The record of a cut.

        Args:
            widths: number of channels of every group that is cut.
        """
        layers = self._layers if self._layers is not None else self._clock.layers({})
        before, after = self._clock.seconds(layers, {}), self._clock.seconds(layers, widths)
        model, forecast = self._model, self._forecast
        network = self._clock.compared(widths)
        foreseen = None if model is None or forecast is None else forecast.foreseen(model.total(widths))
        return NetworkTimes(
            asked=self._asked,
            taken=self._taken,
            at=self._clock.at,
            before=network.before,
            after=network.after,
            measured=1 / network.speedup,
            predicted=foreseen,
            smallest=None if forecast is None else forecast.smallest,
            checks=tuple(self._checks),
            layers={
                name: LayerTime(
                    before[name], None if model is None else model.of(name, widths), after[name]
                )
                for name in before
            },
            spent=self._clock.spent,
        )


def unreachable(asked: float, taken: float, times: tuple[float, float], where: str) -> str:
    """Says that the smallest network takes longer than was asked for.

    Args:
        asked: share of the time of the first uncut network.
        taken: share of that time that the network takes now.
        times: seconds of the network now and of the smallest.
        where: conditions and device.
    """
    before, after = times
    return (
        f"selection.latency={asked} asks for {1000 * asked / taken * before:.3g} ms a pass ({where}), "
        f"but the network takes {1000 * after:.3g} ms if it is cut as far as min_channels and round_to "
        f"allow: latency={taken * after / before:.3f}, of {1000 * before:.3g} ms uncut. Raise latency, "
        "include more layers, or set residual=True."
    )


def _check_noise(asked: float, target: float, found: LatencyComparison) -> None:
    """Refuse a gain that noise would hide: two standard errors of the share that is to be left."""
    noise = 2 * found.error * target
    if noise > 1 - target:
        median = 1000 * found.before.median
        first, third = (1000 * quartile for quartile in found.before.quartiles)
        raise ValueError(
            f"selection.latency={asked} is to save {(1 - target) * median:.3g} of {median:.3g} ms a "
            f"pass, but what a network saves is known to ± {noise * median:.3g} ms alone: "
            f"{found.before.runs} passes of the uncut one have quartiles of {first:.3g} and {third:.3g} "
            "ms. Ask for more, time where nothing else runs, or raise latency_at.batch_size."
        )
