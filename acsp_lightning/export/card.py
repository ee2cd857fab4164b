"""The model card in Markdown: the network, its cuts, its measurements, and how to load it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acsp_lightning.export.formats import Exported
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.report import PruningStep, verdict_line
from acsp_lightning.report.times import summary
from acsp_lightning.serialization import check_format, decode

__all__ = ["SNIPPET", "callback_settings", "model_card", "pruning_steps"]

SNIPPET = """\
import torch

def load(model, path, prefix=""):
    file = torch.load(path, map_location="cpu", weights_only=True)
    state = file.get("state_dict", file)
    for name, old in model.state_dict().items():
        module = model.get_submodule(name.rpartition(".")[0])
        new = state[prefix + name]
        sizes = [key for key, n in vars(module).items() if type(n) is int and (n,) == old.shape[:1]]
        vars(module).update({key: len(new) for key in sizes})
        getattr(module, name.rpartition(".")[2]).data = new
    for name, rows in state.items():  # numbers that no shape tells
        owner, record, key = name.removeprefix(prefix).partition("acsp_size_")
        if record and name.startswith(prefix):
            module, new = model.get_submodule(owner.rstrip(".")), rows[0].tolist()
            kind = type(getattr(module, key))
            setattr(module, key, new[0] if kind is int else kind(new))
    return model.eval()
"""

"""Loads a checkpoint or a state dict into its original class, for inference; needs only torch."""

PAPER = "[arXiv 2505.13225](https://arxiv.org/abs/2505.13225)"

# Arguments of the callback that do not affect the network, or are local paths.
ASIDE = {"read_batch", "read_outputs", "report_dir", "report_plots", "latency_batch_sizes"}

UNKNOWN = "not measured"


def pruning_steps(checkpoint: Mapping[str, Any]) -> list[PruningStep] | None:
    """The cuts recorded in a Lightning checkpoint, in the order of their epochs.

    Args:
        checkpoint: checkpoint as returned by ``torch.load``.

    Returns:
        The cuts, empty if the network was not pruned; None if the file has no record: a state dict, or
        a checkpoint saved with ``save_weights_only=True``.

    Raises:
        ValueError: if they were written by another version of the package.
    """
    if not isinstance(checkpoint.get("callbacks"), Mapping):
        return None
    steps: list[PruningStep] = []
    for state in checkpoint["callbacks"].values():
        # Another callback may have ``steps`` too.
        if isinstance(state, Mapping) and {"steps", "visited", "trial"} <= state.keys():
            check_format(state, "Export it with that version.")
            steps += [decode(PruningStep, step) for step in state["steps"]]
    return sorted(steps, key=lambda step: step.epoch or 0)


def callback_settings(callback: object) -> dict[str, Any]:
    """The non-default arguments of a pruning callback that affect what is cut.

    Args:
        callback: has every argument of its constructor as an attribute of the same name.

    Returns:
        Values by name, those of a nested dataclass under ``outer.inner``.
    """
    found: dict[str, Any] = {}
    for name, parameter in signature(type(callback)).parameters.items():
        value = getattr(callback, name)
        if name in ASIDE:
            continue
        if is_dataclass(value):
            usual = None if parameter.default is None else vars(parameter.default)
            given = {field.name: getattr(value, field.name) for field in fields(value)}
            found |= {f"{name}.{k}": v for k, v in given.items() if usual is None or v != usual[k]}
        elif _listed(value) != _listed(parameter.default):
            found[name] = _listed(value)
    return found


def model_card(
    model: nn.Module,
    steps: Sequence[PruningStep] | None,
    *,
    source: str | None = None,
    epoch: int | None = None,
    inputs: tuple[Any, ...] = (),
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    complexity: Complexity | None = None,
    accuracy: float | None = None,
    exported: Sequence[Exported] = (),
) -> str:
    """A model card in Markdown. Unknown facts are left out, or marked as not known or not measured.

    Args:
        model: the network in its current state.
        steps: its cuts, empty if it was not pruned; None: not known.
        source: name of the file that the network was loaded from.
        epoch: zero-based epoch in which that was saved.
        inputs: example arguments of its forward; the length of the first tensor is the batch size.
        data: source of the validation samples, such as the class of a data module.
        settings: non-default arguments of the callback that pruned it, by name.
        complexity: its current complexity, on the example inputs of the steps.
        accuracy: its top-1 accuracy on all validation samples, in [0, 1].
        exported: files that it was exported to.
    """
    standing = [step for step in steps or () if not step.rolled_back]
    sections = (
        _network(model, source, epoch, inputs),
        _data(standing, data),
        _method(steps, standing, settings),
        _channels(standing),
        _figures(standing, complexity, accuracy),
        _latencies(standing),
        _files(exported),
        _loading(model, source, inputs, exported),
    )
    return "\n\n".join(paragraph for section in sections for paragraph in section) + "\n"


def _network(
    model: nn.Module, source: str | None, epoch: int | None, inputs: tuple[Any, ...]
) -> list[str]:
    saved = "" if epoch is None else f" (epoch {epoch}, counted from 0)"
    origin = "Written" if source is None else f"From `{source}`{saved}, written"
    facts = [f"class: `{_class(model)}`"]
    facts += [f"`{name}`: `{_class(part)}`" for name, part in _parts(model).items()]
    facts += [f"input: {shape}" for shape in _shapes(inputs)]
    return [
        f"# Model card: {type(model).__name__}",
        f"{origin} by acsp_lightning {version('acsp-lightning')} with torch {torch.__version__}.",
        "## Network",
        *_bullets(facts),
    ]


def _data(standing: Sequence[PruningStep], data: str | None) -> list[str]:
    whose = "not known" if data is None else f"`{data}`"
    facts = [f"validation samples: {whose}"]
    for step in standing:
        seen = step.comparison
        unseen = f"; {seen.unseen} more had fewer than two" if seen.unseen else ""
        facts.append(
            f"captured for the {_name(step)}: {step.samples:,} of {seen.classes} classes{unseen}"
        )
    return ["## Data", *_bullets(facts)]


def _method(
    steps: Sequence[PruningStep] | None,
    standing: Sequence[PruningStep],
    settings: Mapping[str, Any] | None,
) -> list[str]:
    title = "## Method"
    if steps is None:
        return [title, "Not known: the file holds weights without the record of a run."]
    verdicts = [verdict_line(step) for step in steps if step.verdict is not None]
    if not standing:
        return [title, "Not pruned.", *_bullets(verdicts)]
    reasons = Counter(str(s.reason) for step in standing for s in step.selections.values())
    facts = [
        f"cuts: {', '.join(_name(step) for step in standing)} (epochs count from 0)",
        *(f"widths: {reason} ({count} groups of layers)" for reason, count in reasons.items()),
        *verdicts,
    ]
    for comparison in (step.comparison for step in standing):
        if comparison.sampling_error:
            facts.append(
                f"{comparison.class_pairs:,} pairs of classes drawn at random; distances between "
                f"channels are right to {comparison.sampling_error:.1%} of their median"
            )
    if settings is not None:
        changed = ", ".join(f"`{name}`: {value}" for name, value in settings.items())
        facts.append(f"settings that are not the defaults: {changed}")
    return [
        title,
        "Whole channels were removed by acsp_lightning, which implements ACSP (D. Levin, G. Singer, "
        f"{PAPER}).",
        *_bullets(facts),
    ]


def _channels(standing: Sequence[PruningStep]) -> list[str]:
    widths: dict[str, tuple[int, int]] = {}
    for step in standing:
        for layer, (before, after) in step.layers.items():
            widths[layer] = (widths.get(layer, (before, 0))[0], after)
    if not widths:
        return []
    rows = [
        (f"`{layer}`", str(before), str(after), f"{after / before:.0%}")
        for layer, (before, after) in widths.items()
    ]
    return ["## Kept channels", _table(("layer", "before", "after", "kept"), rows)]


def _figures(
    standing: Sequence[PruningStep], now: Complexity | None, accuracy: float | None
) -> list[str]:
    columns: list[tuple[str, Complexity | None, float | None]] = [("now", now, accuracy)]
    if standing:
        first, last = standing[0], standing[-1]
        after = "straight after the cut" if len(standing) == 1 else "straight after the last cut"
        columns = [
            ("before", first.before, first.accuracy_before),
            (after, last.after, last.accuracy_after),
            *columns,
        ]
    names, counts, accuracies = zip(*columns, strict=True)
    rows = [
        ("parameters", *_counts([c and c.parameters for c in counts])),
        ("FLOPs", *_counts([c and c.flops for c in counts])),
        ("accuracy", *(UNKNOWN if a is None else f"{a:.2%}" for a in accuracies)),
    ]
    left_out = sorted({name for count in counts if count for name in count.unsupported})
    notes = [
        "FLOPs are those of one forward pass on the example, as fvcore counts: a multiply-add is one."
        + (f" Not counted: {', '.join(f'`{name}`' for name in left_out)}." if left_out else ""),
        "Accuracy is top-1 in validation"
        + ("." if accuracies[-1] is None else ": now over all samples, before over those captured."),
    ]
    return ["## Measured figures", _table(("", *names), rows), "\n".join(notes)]


def _latencies(standing: Sequence[PruningStep]) -> list[str]:
    rows = [
        (
            _name(step),
            str(found.before.batch_size),
            f"{found.before.device}, {found.before.threads} threads",
            f"{1000 * found.before.median:,.3f}",
            f"{1000 * found.after.median:,.3f} ({_gain(found.speedup)})",
        )
        for step in standing
        for found in step.latency
    ]
    shares = [
        f"A share of the time was asked for, {_name(step)}: {summary(step.times)}."
        for step in standing
        if step.times is not None
    ]
    if not rows:
        return shares or ["Latency: not measured."]
    return [
        "Latency, the median of repeated forward passes, both networks in turns:",
        _table(("cut", "batch", "device", "before (ms)", "straight after (ms)"), rows),
        *shares,
    ]


def _files(exported: Sequence[Exported]) -> list[str]:
    if not exported:
        return []
    rows = [
        (
            f"`{file.path.name}`",
            file.format,
            f"{file.size:,}",
            " and ".join(map(str, file.batch_sizes)) or "(the tensors)",
            f"{file.difference:.2g}",
            f"{file.allowed:.2g}",
        )
        for file in exported
    ]
    columns = ("file", "format", "bytes", "batches", "largest difference", "allowed")
    return [
        "## Files",
        "Each was read back and compared with the network, run on the same inputs or tensor by tensor.",
        _table(columns, rows),
    ]


def _loading(
    model: nn.Module, source: str | None, inputs: tuple[Any, ...], exported: Sequence[Exported]
) -> list[str]:
    files = {file.format: file.path.name for file in exported}
    readable = source is not None and not source.endswith(".safetensors")
    weights = files.get("state_dict", source if readable else "weights.pt")
    calls = [f'network = load({type(model).__name__}(...), "{weights}")']
    parts = _parts(model)
    if len(parts) == 1:
        ((name, part),) = parts.items()
        calls.append(
            f'network = load({type(part).__name__}(...), "{weights}", prefix="{name}.")  # alone'
        )
    paragraphs = [
        "## Loading",
        "The weights (a checkpoint of Lightning or a state dict), with torch alone, into your own class "
        "as it was before the cut (what `print` shows of its sizes may be from before, too):",
        _python(SNIPPET + "\n" + "\n".join(calls)),
    ]
    if "torch.export" in files:
        paragraphs += [
            "The program of `torch.export`, which needs no class and runs on the CPU:",
            _python(f'import torch\nnetwork = torch.export.load("{files["torch.export"]}").module()'),
        ]
    if "onnx" in files:
        paragraphs += [
            "ONNX, with a NumPy array for each input; put your samples in place of the zeros:",
            _python(
                "import numpy as np\nimport onnxruntime\n"
                f"inputs = [{', '.join(_zeros(inputs))}]\n"
                f'session = onnxruntime.InferenceSession("{files["onnx"]}")\n'
                "names = [entry.name for entry in session.get_inputs()]\n"
                "outputs = session.run(None, dict(zip(names, inputs)))"
            ),
        ]
    return paragraphs


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The children that hold weights; empty if the model has weights of its own."""
    if next(model.parameters(recurse=False), None) is not None:
        return {}
    return {
        name: part for name, part in model.named_children() if next(part.parameters(), None) is not None
    }


def _shapes(inputs: tuple[Any, ...]) -> list[str]:
    return [f"{kind}, ({', '.join(sizes)})" for kind, sizes in _sized(inputs, "batch")]


def _zeros(inputs: tuple[Any, ...]) -> list[str]:
    """A sample of every input, as NumPy code."""
    return [f'np.zeros([{", ".join(sizes)}], "{kind}")' for kind, sizes in _sized(inputs, "1")]


def _sized(inputs: tuple[Any, ...], batch: str) -> list[tuple[str, list[str]]]:
    """Type and sizes of every tensor; the number of samples is called ``batch``."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    samples = next((len(tensor) for tensor in tensors if tensor.ndim), 0)
    found = []
    for tensor in tensors:
        sizes = list(map(str, tensor.shape))
        if tensor.ndim and len(tensor) == samples:
            sizes[0] = batch
        found.append((str(tensor.dtype).removeprefix("torch."), sizes))
    return found


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _name(step: PruningStep) -> str:
    return f"cut after epoch {step.epoch}{', again' if step.again else ''}"


def _gain(speedup: float) -> str:
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def _counts(counts: Sequence[int | None]) -> list[str]:
    """Each count; from the second on, with the ratio to the first."""
    cells: list[str] = []
    for count in counts:
        fewer = "" if not cells or not count or not counts[0] else f" ({counts[0] / count:.2f}x fewer)"
        cells.append(UNKNOWN if count is None else f"{count:,}{fewer}")
    return cells


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _bullets(facts: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {fact}" for fact in facts)] if facts else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _python(source: str) -> str:
    return f"```python\n{source.rstrip()}\n```"
