"""What is shown while a run goes on."""

import pytest

from hasten.cli.screen import LiveScreen, PlainScreen, table
from hasten.core.progress import Progress
from hasten.measure.intervals import Quantile, Ratio
from hasten.reporting.result import Row

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
    assert capsys.readouterr().err == "racing the fastest ...\n  best so far: a, 2x\n"


def row(p99_high_ns: float | None) -> Row:
    p50, p99 = Quantile(1e6, 9e5, 1.1e6, 900), Quantile(2e6, 1.9e6, p99_high_ns, 900)
    return Row("winner", "a", Ratio(0.5, 0.4, 0.6, 40), p50, p99, 1.2e6, 10**6, "exact")


def test_the_table_has_a_column_for_p99_only_where_one_is_established() -> None:
    assert table([row(None)]).splitlines() == [
        "        model  faster                p50                mean    size",
        "winner  a      2.00x (1.67 to 2.50)  1 ms (0.9 to 1.1)  1.2 ms  1.0 MB",
    ]
    assert table([row(None), row(3e6)]).splitlines()[1:] == [
        "winner  a      2.00x (1.67 to 2.50)  1 ms (0.9 to 1.1)  not established  1.2 ms  1.0 MB",
        "winner  a      2.00x (1.67 to 2.50)  1 ms (0.9 to 1.1)  2 ms (1.9 to 3)  1.2 ms  1.0 MB",
    ]
