"""Cuts that never were, for tests of what is made of them."""

from dataclasses import replace

import torch

from acsp_lightning import Complexity, PruningPlan, PruningStep, SelectionConfig
from acsp_lightning.functional import (
    ChannelSelection,
    ClassSeparation,
    LostPair,
    WidthReason,
    select_channels,
)
from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.fidelity import Estimate, Fidelity
from acsp_lightning.measure.latency import Latency, LatencyComparison
from acsp_lightning.report.step import FitEnd, Outcome, Verdict
from acsp_lightning.selection.maps import GroupMap
from acsp_lightning.selection.network_times import LayerTime, NetworkTimes, TimeCheck
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.selection.tradeoff import Depth, TradeOff
from acsp_lightning.structure.plan import SideCut


def selection() -> ChannelSelection:
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    return select_channels(torch.cdist(points, points), SelectionConfig(keep=0.5))


def complexity(parameters: int, flops: int) -> Complexity:
    return Complexity(parameters, flops, {"conv": flops}, {})


def step(epoch: int = 4, before: int = 6, after: int = 3, accuracy: float | None = 0.75) -> PruningStep:
    chosen = selection()
    return PruningStep(
        epoch=epoch,
        plan=PruningPlan((SideCut("conv", "out", 6, tuple(chosen.kept.tolist())),)),
        selections={"conv": chosen},
        layers={"conv": (before, after)},
        before=complexity(before * 1000, before * 10_000),
        after=complexity(after * 1000, after * 10_000),
        accuracy_before=accuracy,
        accuracy_after=None,
        samples=18,
        comparison=Comparison(classes=3, unseen=0, class_pairs=3, sampling_error=0.0),
    )


def viewed() -> PruningStep:
    """The same with everything that a record can hold, decided by the network's curve."""
    found = step(accuracy=0.75)
    decided = replace(found.selections["conv"], reason=WidthReason.NETWORK_KNEE)
    nan = float("nan")
    before = torch.tensor([[nan, 1.5], [1.5, nan]], dtype=torch.float64)
    view = GroupMap(
        channels=torch.arange(6),
        places=torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        stress=0.125,
        classes=ClassSeparation(
            ((0, 1), (2, 4)), before, before / 2, class_pairs=10, worst=(LostPair(1, 4, 1.5, 0.75),)
        ),
    )
    both = (
        LatencyComparison(
            Latency(size, "cpu", 2, False, 20, 0.002 * size, (0.001, 0.003)),
            Latency(size, "cpu", 2, False, 20, 0.001 * size, (0.001, 0.003)),
            speedup=2.0,
            error=0.01,
        )
        for size in (1, 32)
    )
    return replace(
        found,
        selections={"conv": decided},
        accuracy_after=0.5,
        comparison=Comparison(classes=3, unseen=2, class_pairs=2, sampling_error=0.25),
        network=NetworkCurve((60.0, 40.0, 30.0), (0.0, 0.1, 0.5), 1),
        verdict=Verdict("val_acc", 0.75, 0.7, Outcome.RECOVERED),
        latency=tuple(both),
        maps={"conv": view},
        classes_before=counts([6, 4, 0, 0, 3], [6, 6, 0, 0, 6]),
        classes_after=counts([3, 5, 0, 0, 1], [6, 6, 0, 0, 6]),
        class_names=("ant", "bee", "cat", "dog", "<eel>"),
        left_whole={"stem": "forward fails after a cut (ValueError: <three> channels)"},
        end=FitEnd(complexity(2500, 25_000), counts([6, 6, 0, 0, 5], [6, 6, 0, 0, 6])),
    )


def counts(right: list[int], seen: list[int]) -> ClassCounts:
    return ClassCounts(torch.tensor(right), torch.tensor(seen))


def depth(width: int, drop: float, error: float = 0.005, speed: float | None = None) -> Depth:
    """A network that keeps some of six channels of one group, and all of the other."""
    found = Fidelity(
        1024, 0.75 - drop, Estimate(drop, error), Estimate(1 - 2 * drop, 0.01), Estimate(drop, 0.02)
    )
    speeds = {} if speed is None else {"1": speed, "32": 2 * speed - 1}
    return Depth(width * 10_000, width * 1000, {"conv": width, "whole": 8}, found, speeds)


def trade_off(timed: bool = False, tolerated: int | None = 2) -> TradeOff:
    """Five depths, of which those at a half and a third of the FLOPs are marked."""
    drops = (0.0, 0.001, 0.0125, 0.2, 0.5)
    depths = [
        depth(6 - place, drop, 0.005 * (place > 0), 1 + place / 2 if timed else None)
        for place, drop in enumerate(drops)
    ]
    return TradeOff(tuple(depths), 2, tolerated, 60_000, {"0.5": 3, "0.9": 1})


def traded(reason: WidthReason = WidthReason.MEASURED_KNEE, **options: bool) -> PruningStep:
    """A cut whose volume was measured."""
    found = viewed()
    decided = replace(found.selections["conv"], reason=reason)
    return replace(found, selections={"conv": decided}, trade_off=trade_off(**options))


def network_times(
    asked: float = 0.5, taken: float = 1.0, before: float = 0.04, after: float = 0.02
) -> NetworkTimes:
    """Times of a network of two layers."""

    def latency(median: float) -> Latency:
        return Latency(8, "cpu", 2, False, 21, median, (median * 0.99, median * 1.01))

    return NetworkTimes(
        asked=asked,
        taken=taken,
        at=LatencyAt(batch_size=8),
        before=latency(before),
        after=latency(after),
        measured=after / before,
        predicted=0.51,
        smallest=0.1,
        checks=(TimeCheck(0.55, 0.6), TimeCheck(0.51, after / before)),
        layers={"conv": LayerTime(0.008, 0.005, 0.006), "fc<1>": LayerTime(0.016, 0.009, 0.008)},
        spent=12.25,
    )
