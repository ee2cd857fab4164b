"""What the callback takes, before any fit."""

from typing import Any

import pytest

from acsp_lightning import ACSPPruningCallback, SelectionConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": [-1]}, r"epochs has -1, which is negative"),
        ({"epochs": [2, 1, 2]}, r"epochs has 2 more than once"),
        ({"epochs": []}, r"epochs is \[\]; give zero-based epochs"),
        ({"epochs": [1.0]}, r"epochs has 1\.0, which is no integer"),
        ({"epochs": [True]}, r"epochs has True, which is no integer"),
        ({"epochs": 4}, r"epochs is 4; give zero-based epochs"),
        ({"epochs": "4"}, r"epochs is '4'"),
        ({"layers_per_epoch": 0}, r"layers_per_epoch is 0; it must be an integer >= 1"),
        ({"batchnorm_batches": -1}, r"batchnorm_batches is -1; it must be an integer >= 0"),
        ({"batchnorm_batches": None}, r"batchnorm_batches is None; it must be an integer >= 0"),
        ({"round_to": 0}, r"round_to is 0; it must be an integer >= 1"),
        ({"round_to": 2.0}, r"round_to is 2\.0; it must be an integer >= 1"),
        ({"round_to": None}, r"round_to is None; it must be an integer >= 1"),
        ({"max_batches": 0}, r"max_batches is 0; it must be an integer >= 1"),
        ({"recovery": "ridge"}, r"recovery is 'ridge'; it must be one of least_squares, fold, none"),
        ({"recovery_samples": 0}, r"recovery_samples is 0; it must be an integer >= 1"),
        ({"include": "net.conv1"}, r"include is 'net\.conv1'; .* list"),
        ({"exclude": "net.conv1"}, r"exclude is 'net\.conv1'; .* list"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACSPPruningCallback(**{"epochs": [1], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"keep is 0\.0; it must be a number in \(0, 1\]"),
        ({"keep": 1.1}, r"keep is 1\.1"),
        ({"flops": -0.5}, r"flops is -0\.5"),
        ({"keep": 0.5, "flops": 0.5}, r"keep=0\.5 and flops=0\.5 both fix the volume"),
    ],
)
def test_selection_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**options)
