"""Which depths of a path to measure: some of all, then more of them around the decision."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from acsp_lightning.progress import step
from acsp_lightning.selection.path import DamagePath
from acsp_lightning.selection.tradeoff import (
    Depth,
    TradeOff,
    deepest_within,
    knee_of,
    next_for_knee,
    next_for_tolerance,
)

SPREAD = 6  # depths that are measured first, evenly spaced in FLOPs
REFINED = 6  # depths that may be added around the decision
LONG_WAIT = 30.0  # seconds that warrant a message

Trial = Callable[[Mapping[str, int]], Depth]
"""Makes and measures a cut to some widths."""


class Exploration:
    """Measured depths of a path, from the uncut network to the deepest cut.

    Args:
        path: the path.
        uncut: the uncut network.
        trial: measures a cut.

    Attributes:
        depths: those measured so far.
    """

    def __init__(self, path: DamagePath, uncut: Depth, trial: Trial) -> None:
        self.depths: list[Depth] = [uncut]
        self._path = path
        self._trial = trial
        # What no cut changes; the path counts the layers alone.
        self._elsewhere = uncut.flops - path.full

    def add(self, flops: float) -> Depth | None:
        """Measure the cut of least damage within FLOPs of the network, unless that is done.

        Returns:
            Its depth; None if the path does not reach so few FLOPs.
        """
        return self._add(flops - self._elsewhere)

    def _add(self, budget: float) -> Depth | None:
        """The same within a budget of FLOPs of the layers alone."""
        widths = self._path.within(budget)
        if widths is None:
            return None
        known = next((depth for depth in self.depths if depth.widths == widths), None)
        if known is None:
            known = self._trial(widths)
            self.depths.append(known)
            self.depths.sort(key=lambda depth: -depth.flops)
        return known

    def spread(self, inform: Callable[[str], None], advance: Callable[[], None]) -> None:
        """Measure :data:`SPREAD` depths, evenly spaced, from the deepest one up."""
        # Of the layers: with those elsewhere added and taken off, the least would be missed by rounding.
        least, full = self._path.least, self._path.full
        for place in range(SPREAD):
            started = time.monotonic()
            self._add(least + (full - least) * place / SPREAD)
            advance()
            # The last one keeps most of the network; the first is the fastest of all.
            wait = (time.monotonic() - started) * (SPREAD + REFINED)
            if place == 1 and wait > LONG_WAIT:
                inform(
                    f"Measuring cuts of up to {SPREAD + REFINED} depths will take {wait:.0f} s or more; "
                    "selection.curve='damage' decides without, and so does selection.flops."
                )

    def refine(
        self, wanted: Callable[[Sequence[Depth]], float | None], advance: Callable[[], None]
    ) -> None:
        """Measure what is ``wanted`` next, until nothing new is, at most :data:`REFINED` depths."""
        for _ in range(REFINED):
            known, flops = len(self.depths), wanted(self.depths)
            if flops is not None:
                self.add(flops)
            if len(self.depths) == known:
                return
            advance()


def explore(
    path: DamagePath,
    uncut: Depth,
    trial: Trial,
    *,
    tolerance: float | None = None,
    budgets: Mapping[float, float] = MappingProxyType({}),
    requested: float | None = None,
    inform: Callable[[str], None] = lambda message: None,
) -> TradeOff:
    """Measure cuts along a path.

    Args:
        path: the path.
        uncut: the uncut network.
        trial: measures a cut.
        tolerance: accuracy that may be lost, to be met closely; None: the knee is to be found closely.
        budgets: FLOPs of the network to measure a cut at as well, by the share that they are.
        requested: the share that the cut is to meet; None: the others are only to be shown.
        inform: called with a message if this will take long.
    """
    found = Exploration(path, uncut, trial)
    with step("Measuring cuts", SPREAD + REFINED) as advance:
        found.spread(inform, advance)
        if tolerance is None:
            found.refine(next_for_knee, advance)
        else:
            found.refine(lambda depths: next_for_tolerance(depths, tolerance), advance)
        targets = {share: found.add(flops) for share, flops in budgets.items()}
    depths = tuple(found.depths)
    return TradeOff(
        depths=depths,
        knee=knee_of(depths),
        tolerated=None if tolerance is None else deepest_within(depths, tolerance),
        targets={
            f"{share:g}": depths.index(depth) for share, depth in targets.items() if depth is not None
        },
        requested=None if requested is None else f"{requested:g}",
    )
