"""Every long step of a cut is shown."""

import pytest
from helpers.fits import HALF, Classifier, val_loader
from helpers.recorder import Recorder

from acsp_lightning import SelectionConfig, preview
from acsp_lightning.progress import shown_by

STEPS = {
    "Weighing channels": 3,
    "Looking at channels": 3,
    "Refitting layers": 3,
}


@pytest.mark.parametrize("selection", [HALF, SelectionConfig(flops=0.6)])
def test_the_long_steps_of_a_cut(selection: SelectionConfig) -> None:
    recorder = Recorder()
    with shown_by(recorder):
        preview(Classifier(), val_loader(), selection)
    found = {name: parts for name, parts, _ in recorder.steps}
    assert found["Weighing channels"] == 3
    assert all(1 <= found[name] <= STEPS[name] for name in STEPS)  # of layers that lose channels
    assert all(done == parts for name, parts, done in recorder.steps if name in STEPS)
    assert recorder.steps[0] == ["Capturing activations", 3, 3]
