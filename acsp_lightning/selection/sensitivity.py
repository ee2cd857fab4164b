"""How much an error in each group of channels changes the class scores: measured, group by group."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import nn

from acsp_lightning.capture.statistics import Captured
from acsp_lightning.measure.accuracy import OutputReader
from acsp_lightning.measure.fidelity import collect_scores, compare_scores
from acsp_lightning.progress import tracked
from acsp_lightning.selection.weighing import Weighed
from acsp_lightning.structure.fold import recover_consumers
from acsp_lightning.structure.inputs import sample_count, samples_at
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.refit import Refit
from acsp_lightning.structure.surgery import reversible_cut

# Samples that each group is measured on; fewer in a network of many groups, so that all of them together
# take no more than the capture of a small validation set.
MOST_SAMPLES, LEAST_SAMPLES = 256, 8
PASSES = 2000  # of one sample

# Below this damage, and this change of the scores in squares of their precision, rounding decides: of
# channels that others repeat, whatever is lost is predicted.
LEAST_DAMAGE, LEAST_CHANGE = 1e-3, 10.0

# A few samples may miss what a layer is for, or hit it: no group counts this many times more, or less,
# than the median.
BOUND = 30.0


def with_sensitivity(
    model: nn.Module,
    captured: Captured,
    weighed: Mapping[str, Weighed],
    outputs: Refit | None,
    read_outputs: OutputReader | None,
) -> Mapping[str, Weighed]:
    """Damage of every group in units of what it does to the class scores.

    Each group alone is cut, to about half or as far as it takes to do damage, and put back. Meanwhile
    the consumers make up for what the kept channels predict of the others. The change of the scores is
    divided by the damage at that width. Damage of several groups then adds up to the change that the
    whole cut is expected to make, as a share of the variation of the scores.

    Args:
        model: the uncut network; left as it was.
        captured: its groups and activations.
        weighed: what is known of each group.
        outputs: samples; None: there are none.
        read_outputs: finds class scores in the outputs of forward.

    Returns:
        The same as ``weighed``, with other damage. The same damage, if it does not decide, or there are
        no samples or no class scores.
    """
    if outputs is None or any(one.damage is None for one in weighed.values()):
        return weighed
    found = _sensitivities(model, captured, weighed, outputs.inputs, read_outputs)
    if not found:
        return weighed
    usual = median(found.values())
    scaled = {}
    for name, one in weighed.items():
        factor = min(max(found.get(name, usual), usual / BOUND), usual * BOUND)
        assert one.damage is not None
        damage = replace(one.damage, damage=tuple(factor * value for value in one.damage.damage))
        scaled[name] = replace(one, damage=damage)
    return scaled


def _sensitivities(
    model: nn.Module,
    captured: Captured,
    weighed: Mapping[str, Weighed],
    inputs: Sequence[tuple[Any, ...]],
    read_outputs: OutputReader | None,
) -> dict[str, float]:
    """Change of the scores for a damage of 1, by group; of groups that cannot be told, nothing."""
    most = min(MOST_SAMPLES, max(LEAST_SAMPLES, PASSES // len(weighed)))
    few = _evenly(inputs, most)
    activations = captured.activations
    classes = max((len(sums.count) for sums in activations.outputs.values()), default=2)
    unknown = torch.full((sum(map(sample_count, few)),), classes - 1)

    uncut, found = collect_scores(model, few, unknown, read_outputs), {}
    if uncut is None:
        return {}
    least = LEAST_CHANGE * torch.finfo(uncut.dtype).eps ** 2
    for group in tracked(captured.groups, "Measuring groups"):
        # Norms over fewer channels are corrected in the cut, and were not here.
        chosen = None if group.norms else _about_half(weighed[group.name])
        if chosen is None:
            continue
        kept, damage = chosen
        plan = build_plan([group], {group.name: kept})
        with reversible_cut(model, plan, keep=False) as sliced:
            recover_consumers(model, plan, [group], sliced, activations.input_moments)
            cut = collect_scores(model, few, unknown, read_outputs)
        assert cut is not None
        change = compare_scores(uncut, cut, uncut.argmax(1)).score_error.mean
        if change > least:
            found[group.name] = change / damage
    return found


def _evenly(inputs: Sequence[tuple[Any, ...]], most: int) -> list[tuple[Any, ...]]:
    """Samples of all batches at even distances, since a loader may give one class after the other."""
    ends = list(accumulate(map(sample_count, inputs)))
    step = -(-ends[-1] // most)
    found = []
    for batch, end in zip(inputs, ends, strict=True):
        start = end - sample_count(batch)
        places = range(-start % step, end - start, step)
        if places:
            found.append(samples_at(batch, places))
    return found


def _about_half(one: Weighed) -> tuple[list[int], float] | None:
    """Channels to keep at the harmful width nearest to half, and its damage; None if none does any."""
    assert one.damage is not None
    *widths, whole = zip(one.damage.ks, one.damage.damage, strict=True)
    harmful = [(k, damage) for k, damage in widths if damage >= LEAST_DAMAGE]
    if not harmful:
        return None
    k, damage = min(harmful, key=lambda width: abs(width[0] - whole[0] / 2))
    return one.curves.sweep.medoids[one.curves.ks.tolist().index(k)].tolist(), damage
