"""A fit and a preview know the same options, and accept and refuse the same values of them."""

import inspect
import pydoc
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.fits import HALF, Classifier, Fit, train_loader, val_loader
from helpers.outputs import second
from jsonargparse import ArgumentParser

from acsp_lightning import (
    ACSPPruningCallback,
    Distillation,
    Guard,
    LatencyAt,
    PruningSettings,
    SelectionConfig,
    preview,
)
from acsp_lightning.capture.batches import read_batch

# Of every option values that are accepted, and values that are refused wherever they are given.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "layers_per_epoch": ([None, 1, 3], [0, 1.0, True]),
    "include": ([["*"], ["net.conv1"]], ["net.conv1", [1]]),
    "exclude": ([[], ["net.fc1"]], ["net.fc1", [None]]),
    "residual": ([True, False], [1, "yes"]),
    "norms": (["exact", "refit"], ["approximate", None]),
    "selection": ([SelectionConfig(flops=0.6), {"keep": 0.5}], [0.5, {"kept": 0.5}, {"keep": 2}]),
    "recovery": (["least_squares", "fold", "none"], ["ridge", None]),
    "recovery_samples": ([1, 7, None], [0]),
    "measured_samples": ([1, 50], [0, 1.5, True, None]),
    "batchnorm_batches": ([0, 2], [-1, 1.5]),
    "round_to": ([1, 2], [0, None]),
    "max_batches": ([None, 2], [0, "2"]),
    "read_batch": ([read_batch], ["read_batch", None]),
    "read_outputs": ([None, lambda outputs: outputs, lambda outputs: None], ["logits", 1]),
    "report_dir": ([None], [3]),
    "report_plots": ([False], ["no", 0]),
    "latency_batch_sizes": ([[], [1]], [[0], "1", 1]),
    "latency_at": (
        [LatencyAt(batch_size=2), {"precision": "bfloat16", "channels_last": True}],
        [None, 8, {"batch": 8}, {"batch_size": 0}],
    ),
    "latency_table": ([None], [3]),
    "copies": ([None, lambda module: ()], ["copies", 1]),
    "reset_monitors": ([True, False], [None]),
    "guard": (
        [None, Guard(0.5, "val_loss", "min"), {"max_drop": 1, "monitor": "a"}],
        [0.1, {}, {"max_drop": -1}],
    ),
    "distillation": (
        [None, Distillation(), {"weight": 1, "temperature": 2}, {}],
        [0.9, {"weight": 0.0}, {"weight": 1.1}, {"weight": True}, {"temperature": 0}, {"T": 4.0}]
        + [{"temperature": value} for value in (-1.0, float("inf"), float("nan"), "4")],
    ),
}
ACCEPTED = [(name, value) for name, (good, _) in VALUES.items() for value in good]
REFUSED = [(name, value) for name, (_, bad) in VALUES.items() for value in bad]

# Well-formed, and out of reach for the network of these tests: its narrowest layer has 6 channels.
OUT_OF_REACH: list[tuple[dict[str, Any], str]] = [
    ({"round_to": 7}, "round_to is 7, but 'net.conv2' has only 6 channels"),
    ({"selection": SelectionConfig(flops=0.001)}, "flops=0.001 cannot be reached"),
    ({"selection": {"tolerance": 0.01}}, "tolerance=0.01 needs 396 samples to tell such a drop"),
    ({"include": ["net.conv9"]}, "include has 'net.conv9', which matches no"),
    ({"exclude": ["net.bn1"]}, "exclude has 'net.bn1', which matches no"),
    ({"exclude": ["net.*"]}, "No layer of Classifier can be pruned"),
]


def quick(options: dict[str, Any]) -> dict[str, Any]:
    return {"selection": HALF, "report_plots": False, **options}


def test_every_option_is_tested() -> None:
    assert VALUES.keys() == {field.name for field in fields(PruningSettings)}


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_both_accept(fit: Fit, tmp_path: Path, name: str, value: Any) -> None:
    options = quick({name: value})
    assert preview(Classifier(), val_loader(), **options).after.flops
    pruning = ACSPPruningCallback(epochs=[0], **options)
    if pruning.guard is not None and pruning.guard.monitor == "a":
        return  # which this module does not log
    fit(Classifier(), [pruning], max_epochs=3)
    assert len(pruning.steps) == 1


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_both_refuse_in_the_same_words(name: str, value: Any) -> None:
    named = "|".join([name, *(value if isinstance(value, dict) else ())])
    with pytest.raises(ValueError, match=named) as in_fit:
        ACSPPruningCallback(epochs=[0], **{name: value})
    with pytest.raises(ValueError, match=named) as in_preview:
        preview(Classifier(), val_loader(), **{name: value})
    assert str(in_preview.value) == str(in_fit.value)


@pytest.mark.parametrize(("options", "message"), OUT_OF_REACH)
def test_both_refuse_what_the_network_cannot_give(
    fit: Fit, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as in_fit:
        fit(Classifier(), [ACSPPruningCallback(epochs=[0], **options)])
    with pytest.raises(ValueError, match=message) as in_preview:
        preview(Classifier(), val_loader(), **options)
    assert str(in_preview.value) == str(in_fit.value)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="rond_to"):
        ACSPPruningCallback(epochs=[0], rond_to=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="rond_to"):
        preview(Classifier(), train_loader(), rond_to=8)


def test_every_option_is_in_signature_and_help_of_the_callback() -> None:
    parameters = inspect.signature(ACSPPruningCallback).parameters
    assert list(parameters) == ["epochs", *VALUES]
    help_text = inspect.getdoc(ACSPPruningCallback) or ""
    for name in parameters:
        assert f"\n    {name}: " in help_text, name
    assert len(help_text.splitlines()) < 90


def test_the_help_of_the_callback_fits_three_screens() -> None:
    """Of 60 lines each, less what it has from Lightning's own Callback."""
    whole = pydoc.plain(pydoc.render_doc(ACSPPruningCallback))
    own = whole.partition("Methods inherited from lightning.pytorch")[0]
    assert len(own.splitlines()) <= 3 * 60


@pytest.mark.parametrize("name", ["read_batch", "read_outputs", "copies"])
def test_functions_come_from_yaml_by_their_import_paths(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ACSPPruningCallback, "cut")
    given = parser.parse_string(f"cut: {{epochs: [0], {name}: helpers.outputs.second}}")
    assert getattr(parser.instantiate_classes(given).cut, name) is second


@pytest.mark.parametrize("given", ["{}", "{weight: 0.9, temperature: 4.0}"])
def test_a_teacher_comes_from_yaml(given: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ACSPPruningCallback, "cut")
    read = parser.parse_string(f"cut: {{epochs: [0], distillation: {given}}}")
    assert parser.instantiate_classes(read).cut.distillation == Distillation(0.9, 4.0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"keep": 0.5}, r"keep belongs in selection=SelectionConfig\(keep=0\.5\)"),
        ({"curve": "mss"}, r"curve belongs in selection=SelectionConfig\(curve='mss'\)"),
        ({"patience": 2}, r"patience belongs in guard=Guard\(patience=2\)"),
        ({"temperature": 2}, r"temperature belongs in distillation=Distillation\(temperature=2\)"),
    ],
)
def test_an_option_of_a_record_is_sent_there(option: dict[str, Any], said: str) -> None:
    for ask in (
        lambda: ACSPPruningCallback([1], **option),
        lambda: PruningSettings(**option),
        lambda: preview(Classifier(), val_loader(), **option),
    ):
        with pytest.raises(TypeError, match=said):
            ask()


def test_an_option_of_nobody_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'flop'"):
        ACSPPruningCallback([1], flop=0.5)


@pytest.mark.parametrize(("given", "share"), [(0.3, 0.3), (50, 0.5), ("half", 0.5)])
def test_a_bare_share_is_told_how_to_be_given(given: Any, share: float) -> None:
    said = rf"selection is {given!r}; it must be a SelectionConfig, such as .*\(flops={share}\)"
    with pytest.raises(ValueError, match=said):
        PruningSettings(selection=given)
