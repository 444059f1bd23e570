"""What is shown while a run goes on, line by line."""

from typing import get_args

import pytest

from hasten.cli.live import LiveScreen
from hasten.cli.phases import PHASES
from hasten.cli.screen import STAGES, PlainScreen, screen, table
from hasten.core.progress import UNKNOWN, Outline, Progress, StageName, Tried
from hasten.measure.intervals import Quantile, Ratio
from hasten.reporting.result import Row

MARKUP = "[bold]x[/bold] [/nothing] [red"
OUTLINE = Outline((("model", MARKUP), ("data", "none")), ("prepare", "exact", "race"))


@pytest.mark.parametrize("kind", [PlainScreen, LiveScreen])
def test_names_that_look_like_markup_are_shown_as_they_are(
    kind: type[PlainScreen | LiveScreen], capsys: pytest.CaptureFixture[str]
) -> None:
    with kind() as listen:
        listen(Progress("prepare", MARKUP, 0, 1, outline=OUTLINE))
        listen(Progress("train", MARKUP, 1, 3, f"{MARKUP}: failed", news=f"y {MARKUP}"))
        listen(Progress("try", MARKUP, 2, 3, tried=Tried(MARKUP, "exact", "1.50x, x", 0.5)))
    shown = capsys.readouterr().err
    assert f"{MARKUP}: failed\n" in shown
    assert f"{MARKUP}\ndata" in shown
    assert f"y {MARKUP}\n" in shown.replace("Y", "y")


@pytest.mark.parametrize("kind", [PlainScreen, LiveScreen])
def test_names_from_models_send_a_terminal_no_commands(
    kind: type[PlainScreen | LiveScreen], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "x\x1b[2Jy\nz"
    with kind() as listen:
        listen(Progress("prepare", bad, 0, 1, outline=Outline((("model", bad),))))
        listen(Progress("try", bad, 1, 2, bad, bad, tried=Tried(bad, "failed", bad), news=bad))
        listen(Progress("train", bad, 1, 2, bad))
    shown = capsys.readouterr().err
    assert "\x1b[2J" not in shown
    assert "y\nz" not in shown


def test_each_stage_has_words_for_people_and_belongs_to_a_phase() -> None:
    # Models are made in between, which is no stage of its own to a reader.
    told = set(get_args(StageName)) - {"transform"}
    assert set(STAGES) == set(PHASES) == told


def test_the_reference_lists_each_stage_of_a_run() -> None:
    listed = ", ".join(f'"{stage}"' for stage in get_args(StageName))
    assert f"stage: {listed}." in " ".join((Progress.__doc__ or "").split())


def test_plain_lines_name_a_stage_and_a_best_once(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainScreen() as listen:
        for done in range(3):
            listen(Progress("race", f"round {done}", done, 3, None, "a, 2x"))
    assert capsys.readouterr().err == "racing the fastest ...\n  best so far: a, 2x\n"


def test_an_outcome_comes_before_the_best_that_it_makes(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainScreen() as listen:
        listen(Progress("transform", "int8", 1, 2, None, "a, 2x"))
        listen(Progress("try", "b", 1, 2, "a: 2x", "a, 2x"))
    said = capsys.readouterr().err.splitlines()[1:]
    assert said == ["  [1/2] a: 2x", "  best so far: a, 2x"]


def test_a_total_that_is_not_known_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainScreen() as listen:
        listen(Progress("widths", "8 bits", 1, UNKNOWN, "10 bits: no answer lost", later_s=30.0))
    assert capsys.readouterr().err == "trying bit widths ...\n  [1] 10 bits: no answer lost\n"


def test_plain_lines_are_an_event_each(capsys: pytest.CaptureFixture[str]) -> None:
    outline = Outline((("model", "m.onnx"), ("promise", "none")))
    now = [0.0]
    with PlainScreen(lambda: now[0]) as listen:
        listen(Progress("prepare", "reading", 0, 1, outline=outline))
        listen(Progress("exact", "a", 0, 4, later_s=30.0))
        now[0] = 10.0
        listen(Progress("exact", "b", 1, 4, "a: the baseline", later_s=30.0))
        listen(Progress("transform", "int8", 1, 2, later_s=30.0))
        listen(Progress("exact", "b", 2, 4, "b: 2x", news="first answer: b", later_s=30.0))
        listen(Progress("race", "round 0", 2, 2, later_s=40.0))
    assert capsys.readouterr().err.splitlines() == [
        "model:    m.onnx",
        "promise:  none",
        "trying exact forms ...",
        "  [1/4] a: the baseline",
        "  [2/4] b: 2x",
        "first answer: b",
        "racing the fastest ... (about 40 s left)",
    ]


def test_a_stage_that_takes_long_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with PlainScreen(lambda: now[0]) as listen:
        for done in range(5):
            listen(Progress("figures", f"round {done + 1}", done, 40, later_s=10.0))
            now[0] += 10
        listen(Progress("load", "server", 0, 1))
        now[0] += 30
        listen(Progress("load", "server", 0, 1))
    assert capsys.readouterr().err.splitlines() == [
        "measuring final figures ...",
        "  round 3 (2 of 40, about 6 min left)",
        "  round 5 (4 of 40, about 6 min left)",
        "measuring under load ...",
        "  server",
    ]


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(screen(), PlainScreen)


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
