from helpers.recorder import Recorder

from acsp_lightning.progress import shown_by, step, tracked


def test_nobody_looks_by_default() -> None:
    with step("anything", 3) as advance:
        advance()
    assert list(tracked([1, 2], "anything")) == [1, 2]


def test_the_display_hears_of_every_part_and_only_inside() -> None:
    recorder = Recorder()
    with shown_by(recorder):
        assert list(tracked("abc", "letters")) == ["a", "b", "c"]
        with step("left early", 2) as advance:
            advance()
    list(tracked("de", "later"))
    assert recorder.steps == [["letters", 3, 3], ["left early", 2, 1]]
