"""Which depths of a path to measure: some of all, then more of them around the decision."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

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
        return None if widths is None else self.add_widths(widths)

    def add_widths(self, widths: Mapping[str, int]) -> Depth:
        """Measure a cut to some widths, unless that is done."""
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
        self, wanted: Callable[[Sequence[Depth]], Iterable[float]], advance: Callable[[], None]
    ) -> None:
        """Measure what is ``wanted`` next, until nothing new is, at most :data:`REFINED` depths.

        Of several FLOPs the first whose cut is not known: the path may have none in between.
        """
        for _ in range(REFINED):
            known = len(self.depths)
            for flops in wanted(self.depths):
                self.add(flops)
                if len(self.depths) > known:
                    break
            else:
                return
            advance()


def explore(
    path: DamagePath,
    uncut: Depth,
    trial: Trial,
    *,
    tolerance: float | None = None,
    whole: int | None = None,
    shares: Iterable[float] = (),
    requested: float | None = None,
    in_time: Mapping[str, int] | None = None,
    inform: Callable[[str], None] = lambda message: None,
) -> TradeOff:
    """Measure cuts along a path.

    Args:
        path: the path.
        uncut: the uncut network.
        trial: measures a cut.
        tolerance: accuracy that may be lost, to be met closely; None: the knee is to be found closely.
        whole: FLOPs that shares are of; None: those of the uncut network.
        shares: at which a cut is measured as well, to be shown.
        requested: the share that the cut is to meet; None: none is set.
        in_time: widths that meet a target in time, to measure a cut to as well; None: there is none.
        inform: called with a message if this will take long.

    Raises:
        ValueError: if the path does not reach a share.
    """
    whole = whole or uncut.flops
    asked = dict.fromkeys(share for share in (requested, *shares) if share is not None)
    least = (uncut.flops - path.full + path.least) / whole
    for share in dict.fromkeys(shares):
        # Like the path itself, which would miss its own end by rounding.
        if path.within(share * whole - (uncut.flops - path.full)) is None:
            raise ValueError(
                f"A share of {share:g} of the FLOPs cannot be reached: at the smallest widths "
                f"{least:.1%} are left. Leave it out, lower min_channels or round_to, include more "
                "layers, or set residual=True."
            )
    found = Exploration(path, uncut, trial)
    with step("Measuring cuts", SPREAD + REFINED) as advance:
        found.spread(inform, advance)
        if tolerance is None:
            found.refine(next_for_knee, advance)
        else:
            found.refine(lambda depths: next_for_tolerance(depths, tolerance), advance)
        targets = {share: found.add(share * whole) for share in asked}
        planned = None if in_time is None else found.add_widths(in_time)
    depths = tuple(found.depths)
    return TradeOff(
        depths=depths,
        knee=knee_of(depths),
        tolerated=None if tolerance is None else deepest_within(depths, tolerance),
        whole=whole,
        targets={
            f"{share:g}": depths.index(depth) for share, depth in targets.items() if depth is not None
        },
        requested=None if requested is None else f"{requested:g}",
        in_time=None if planned is None else depths.index(planned),
    )
