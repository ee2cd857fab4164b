"""A target in time on another machine, whose times are those of a table."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import nn

from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.layer_times import Call, key_of
from acsp_lightning.measure.time_table import Profile, TimeTable
from acsp_lightning.selection.clock import Clock
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.deadline import CLOSE, unreachable
from acsp_lightning.selection.forecast import Forecast
from acsp_lightning.selection.network_times import LayerTime, NetworkTimes
from acsp_lightning.selection.path import DamagePath, cheaper_widths
from acsp_lightning.selection.time_model import TimedLayer, TimeModel
from acsp_lightning.structure.groups import ChannelGroup

SAME = 1e-6  # sums of the same times differ by less of them

ANEW = (
    "Write it anew with acsp-lightning profile, from this network before its first cut and with the "
    "same include, exclude, residual, round_to, min_channels and latency_at."
)


def read_table(path: Path, at: LatencyAt) -> Profile:
    """Times of layers and networks, as ``acsp-lightning profile`` writes them.

    Args:
        path: the file.
        at: the conditions that are wanted.

    Raises:
        ValueError: if it cannot be read, or was made under other conditions.
    """
    try:
        stored = Profile.read(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().rstrip(".")
        raise ValueError(f"latency_table={path} cannot be read: {reason}. {ANEW}") from error
    if stored.latency_at != str(at):
        raise ValueError(
            f"latency_table={path} was timed at {stored.latency_at}, and latency_at is {at}. {ANEW}"
        )
    return stored


def table_clock(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    inputs: tuple[object, ...],
    at: LatencyAt,
    stored: Profile,
    path: Path,
) -> Clock:
    """A clock that knows the layers of a table, and refuses all others."""

    def refuse(layers: Sequence[tuple[nn.Module, Call]], _: float) -> list[float]:
        layer, call = layers[0]
        raise ValueError(f"latency_table={path} has no time of {key_of(layer, call)}. {ANEW}")

    return Clock(model, groups, inputs, at, TimeTable(stored.layers, refuse))


class TableDeadline:
    """Finds the widths of least damage within a share of the time that a table foretells.

    Nothing is timed: the network that is planned first is the one.

    Args:
        clock: see :func:`table_clock`.
        candidates: numbers of channels below the full one that the table has layers of, ascending, by
            name of the group.
        asked: share of the time of the uncut network, in (0, 1].
        stored: the table.
        path: its file.
    """

    def __init__(
        self,
        clock: Clock,
        candidates: Mapping[str, Sequence[int]],
        asked: float,
        stored: Profile,
        path: Path,
    ) -> None:
        self.candidates = candidates
        self._clock = clock
        self._asked = asked
        self._networks = stored.networks
        self._uncut = stored.networks[0].times.before
        self._file = path

    @cached_property
    def _layers(self) -> tuple[TimedLayer, ...]:
        return self._clock.layers(self.candidates)

    @cached_property
    def _model(self) -> TimeModel:
        model = self._clock.model(self._layers)
        total, known = model.total({}), self._networks[0].total
        if abs(total - known) > SAME * known:
            raise ValueError(
                f"latency_table={self._file} is of another network: its layers take "
                f"{1000 * known:.4g} ms, and those of this one {1000 * total:.4g} ms. {ANEW}"
            )
        return model

    @cached_property
    def _forecast(self) -> Forecast:
        shares = {network.total: 1 / network.times.speedup for network in self._networks}
        return Forecast({**shares, self._networks[0].total: 1.0})

    def check(self) -> None:
        """Check that the table is of this network, and that the smallest one meets the target.

        Raises:
            ValueError: if either is not so.
        """
        self._check_least(self._model.total({n: ks[0] for n, ks in self.candidates.items() if ks}))

    def _check_least(self, total: float) -> None:
        least = self._forecast.share(total)
        if self._asked < 1 and least > (1 + CLOSE) * self._asked:
            times = self._uncut.median, least * self._uncut.median
            raise ValueError(unreachable(self._asked, 1.0, times, f"{self._clock.at}, {self._file}"))

    def path(self, curves: Mapping[str, DamageCurve]) -> DamagePath:
        """As :meth:`acsp_lightning.selection.deadline.Deadline.path`."""
        return DamagePath.of(cheaper_widths(curves, self._model), self._model)

    def widths(self, path: DamagePath) -> Mapping[str, int]:
        """The widths of least damage that are foretold to meet the target.

        Raises:
            ValueError: as :meth:`check`.
        """
        if self._asked >= 1:
            return path.stages[0].widths
        self._check_least(path.least)
        return path.within(max(self._forecast.total(self._asked), path.least)) or path.stages[-1].widths

    def seconds(self, widths: Mapping[str, int]) -> float:
        """Foretold time of the network with some widths."""
        return self._uncut.median * self._forecast.share(self._model.total(widths))

    def times(self, widths: Mapping[str, int]) -> NetworkTimes:
        """The record of a cut."""
        model = self._model
        return NetworkTimes(
            asked=self._asked,
            taken=1.0,
            at=self._clock.at,
            before=self._uncut,
            after=None,
            measured=None,
            predicted=self._forecast.share(model.total(widths)),
            smallest=self._forecast.smallest,
            checks=(),
            layers={
                layer.name: LayerTime(model.of(layer.name, {}), model.of(layer.name, widths), None)
                for layer in self._layers
            },
            table=str(self._file),
        )
