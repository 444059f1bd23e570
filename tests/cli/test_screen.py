"""What is shown while a run goes on."""

import pytest

from hasten.cli.screen import LiveScreen, PlainScreen
from hasten.progress import Progress

MARKUP = "[bold]x[/bold] [/nothing] [red"


@pytest.mark.parametrize("screen", [PlainScreen, LiveScreen])
def test_names_that_look_like_markup_are_shown_as_they_are(
    screen: type[PlainScreen | LiveScreen], capsys: pytest.CaptureFixture[str]
) -> None:
    with screen() as listen:
        listen(Progress("try", MARKUP, 1, 3, f"{MARKUP}: failed", None))
        listen(Progress("try", MARKUP, 2, 3, None, f"{MARKUP}, 2x"))
    shown = capsys.readouterr().err
    assert f"{MARKUP}: failed\n" in shown
    assert f"best so far: {MARKUP}, 2x\n" in shown


def test_plain_lines_name_a_stage_and_a_best_once(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainScreen() as listen:
        for done in range(3):
            listen(Progress("race", f"round {done}", done, 3, None, "a, 2x"))
    assert capsys.readouterr().err == "racing ...\n  best so far: a, 2x\n"
