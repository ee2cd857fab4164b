import pytest
from helpers.recorder import Recorder

from acsp_lightning.progress import shown_by, step, tracked, warn_on_error


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


def test_a_display_is_put_back_after_an_error() -> None:
    outer, inner = Recorder(), Recorder()
    with shown_by(outer):
        with pytest.raises(RuntimeError, match="stop"), shown_by(inner):
            raise RuntimeError("stop")
        list(tracked("ab", "outside"))
        with shown_by(None):
            list(tracked("ab", "nobody"))
    assert (outer.steps, inner.steps) == ([["outside", 2, 2]], [])


def test_a_step_of_unknown_length_has_no_parts() -> None:
    recorder = Recorder()
    with shown_by(recorder):
        list(tracked(iter("abc"), "stream"))
    assert recorder.steps == [["stream", 0, 3]]


def test_a_by_product_that_fails_costs_a_warning() -> None:
    def fail() -> int:
        raise OSError("disk full")

    assert warn_on_error(lambda: 3, "Not timed", "Go on.") == 3
    with pytest.warns(UserWarning, match=r"^Not timed \(OSError: disk full\)\. Go on\.$"):
        assert warn_on_error(fail, "Not timed", "Go on.") is None


def test_interrupts_are_no_failures() -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warn_on_error(interrupt, "Not timed", "Go on.")
