"""The page of a cut."""

from collections.abc import Mapping

from acsp_lightning.report.step import PruningStep


def step_page(step: PruningStep, pictures: Mapping[str, bytes]) -> str:
    """The page."""
    return ""
