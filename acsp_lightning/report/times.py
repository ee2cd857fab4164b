"""What the times of a cut say, as rows: which layers hold the network back."""

from collections.abc import Iterator

from acsp_lightning.selection.network_times import NetworkTimes

HEAD = ("layer", "before, ms", "predicted", "after", "share before", "after")

NOTE = (
    "Every layer was run by itself, in turns with others of its kind. What the network takes besides "
    "lies between the layers (activations, sums, starting operations), or in caches that a layer finds "
    "filled by others."
)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with two or three decimals."""
    return f"{1000 * seconds:,.{2 if abs(seconds) >= 0.001 else 3}f}"


def layer_rows(times: NetworkTimes) -> Iterator[tuple[str, ...]]:
    """A row for every layer, the slowest after the cut first, and one for the rest of the network.

    Times in milliseconds; shares are those of the network's time.
    """
    before, after = times.network.before.median, times.network.after.median
    layers = sorted(times.layers.items(), key=lambda entry: -entry[1].after)
    for name, found in layers:
        yield (
            name,
            milliseconds(found.before),
            "" if found.predicted is None else milliseconds(found.predicted),
            milliseconds(found.after),
            f"{found.before / before:.1%}",
            f"{found.after / after:.1%}",
        )
    rest = (
        before - sum(found.before for found in times.layers.values()),
        after - sum(found.after for found in times.layers.values()),
    )
    shares = f"{rest[0] / before:.1%}", f"{rest[1] / after:.1%}"
    yield ("rest of the network", milliseconds(rest[0]), "", milliseconds(rest[1]), *shares)


def summary(times: NetworkTimes) -> str:
    """What was asked for, predicted and measured, as a sentence."""
    network = times.network
    begun = network.before.median / times.taken
    asked = f"latency={times.asked:g} asks for {milliseconds(times.asked * begun)} ms"
    where = f"{times.at}, {network.before.device}, {network.before.threads} threads"
    found = f"measured {milliseconds(network.after.median)} ms, {times.reached:.3f} of the time"
    parts = [f"{asked} ({where})", found]
    if times.predicted is not None:
        predicted = times.predicted * network.before.median
        parts.insert(1, f"predicted {milliseconds(predicted)} ms")
    if times.smallest is not None:
        parts.append(f"the smallest network takes {times.taken * times.smallest:.3f}")
    return "; ".join([*parts, f"{times.spent:.0f} s of measuring"])
