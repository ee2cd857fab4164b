import pytest
from helpers.commands import run

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.mark.parametrize("words", [["report", "--help"], ["recipe", "--help"], ["--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 0
    assert "report" in capsys.readouterr().out or words[0] == "recipe"
