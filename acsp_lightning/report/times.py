"""What the times of a cut say, as rows: which layers hold the network back."""

from collections.abc import Iterator
from pathlib import Path

from acsp_lightning.selection.network_times import NetworkTimes

HEAD = ("layer", "before, ms", "predicted", "after", "share before", "after")

NOTE = (
    "Every layer was run by itself, in turns with others; its fastest pass counts. What the "
    "network takes besides lies between the layers (activations, sums, starting operations), or in "
    "caches that a layer finds filled by others."
)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with two or three decimals."""
    return f"{1000 * seconds:,.{2 if abs(seconds) >= 0.001 else 3}f}"


def layer_rows(times: NetworkTimes) -> Iterator[tuple[str, ...]]:
    """A row for every layer, the slowest after the cut first, and one for the rest of the network.

    Times in milliseconds; shares are those of the network's time. What was not measured is empty, and
    shares after the cut are then those that were predicted.
    """
    before, after = times.before.median, times.share * times.before.median
    left = {
        name: found.predicted if found.after is None else found.after
        for name, found in times.layers.items()
    }
    for name, found in sorted(times.layers.items(), key=lambda entry: -(left[entry[0]] or 0.0)):
        yield (
            name,
            milliseconds(found.before),
            _cell(found.predicted),
            _cell(found.after),
            f"{found.before / before:.1%}",
            f"{(left[name] or 0.0) / after:.1%}",
        )
    rest = before - sum(found.before for found in times.layers.values())
    others = after - sum(found or 0.0 for found in left.values())
    cells = (milliseconds(rest), "", _cell(None if times.after is None else others))
    yield ("rest of the network", *cells, f"{rest / before:.1%}", f"{others / after:.1%}")


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def change(times: NetworkTimes) -> str:
    """The time of the network before and after the cut, in a few words."""
    before, after = times.before.median, times.share * times.before.median
    foretold = f", by {Path(times.table).name}" if times.table else ""
    return f"{milliseconds(before)} -> {milliseconds(after)} ms ({times.at}{foretold})"


def summary(times: NetworkTimes) -> str:
    """What was asked for, predicted and measured, as a sentence."""
    before = times.before
    asked = times.asked / times.taken * before.median
    where = f"{times.at}, {before.device}, {before.threads} threads"
    where += f", by {times.table}" if times.table else ""
    parts = [f"latency={times.asked:g} asks for {milliseconds(asked)} ms ({where})"]
    if times.predicted is not None:
        predicted = f"predicted {milliseconds(times.predicted * before.median)} ms"
        reached = "" if times.after is not None else f", {times.reached:.3f} of the time"
        parts.append(predicted + reached)
    if times.after is not None:
        measured = milliseconds(times.share * before.median)
        parts.append(f"measured {measured} ms, {times.reached:.3f} of the time")
    if times.smallest is not None:
        parts.append(f"the smallest network takes {times.taken * times.smallest:.3f}")
    spent = [] if times.table else [f"{times.spent:.0f} s of measuring"]
    return "; ".join([*parts, *spent])
