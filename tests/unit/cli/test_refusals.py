import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch

from acsp_lightning import SelectionConfig, load_pruned
from acsp_lightning.cli.refusals import (
    Parser,
    RefusalError,
    is_deliberate,
    is_refusal,
    refusals_reported,
)


def caught(work: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: PT011 - whatever it is
        work()
    return found.value


def raises(error: BaseException) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "work",
    [
        raises(RefusalError("no")),
        lambda: open("nowhere.yaml"),  # noqa: SIM115
        lambda: SelectionConfig(keep=2.0),  # a check of this package
        lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=-1.0),
        raises(argparse.ArgumentError(None, "unknown")),
    ],
)
def test_what_is_wrong_with_the_input_is_refused(work: Callable[[], Any]) -> None:
    assert is_refusal(caught(work))


@pytest.mark.parametrize(
    "work",
    [
        lambda: 1 / 0,
        lambda: {}["key"],
        lambda: torch.zeros(2) @ torch.zeros(3),
        raises(ValueError("from the user's own code")),
        raises(AssertionError("a bug")),
        lambda: load_pruned(None, object()),  # type: ignore[arg-type]
    ],
)
def test_bugs_keep_their_traceback(work: Callable[[], Any]) -> None:
    error = caught(work)
    assert not is_refusal(error)
    with pytest.raises(type(error)), refusals_reported("fit"):
        raise error


def test_data_that_a_users_class_looks_for_in_vain() -> None:
    class Data:
        def setup(self) -> None:
            raise ValueError("no images below ./data")

        def compute(self) -> None:
            raise ValueError("no images below ./data")

    assert is_refusal(caught(Data().setup))
    assert not is_refusal(caught(Data().compute))


def test_raised_on_purpose_or_not() -> None:
    assert is_deliberate(caught(raises(ValueError("no"))))
    assert not is_deliberate(caught(lambda: int("four")))


def test_a_refusal_is_one_line_and_exit_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, refusals_reported("export"):
        raise RefusalError("there is no model")
    assert end.value.code == 2
    assert capsys.readouterr().err == "acsp-lightning export: error: there is no model\n"


def test_a_parser_refuses_without_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser()
    parser.add_argument("--to", required=True)
    with pytest.raises(RefusalError, match="required: --to"):
        parser.parse_args([])
    assert capsys.readouterr().err == ""
