"""The live view of a run: what a terminal of some size shows at a moment."""

import io

import pytest
from rich.console import Console

from hasten.cli.live import LiveScreen
from hasten.cli.phases import Phases
from hasten.core.progress import Outline, Progress, StageName, Tried

STAGES: tuple[StageName, ...] = (
    "prepare",
    "exact",
    "try",
    "race",
    "certify",
    "figures",
    "curve",
)
MANY = [
    Tried("original, ONNX Runtime", "baseline", "the baseline"),
    *(Tried(f"exact form {n}, OpenVINO", "exact", "x", 0.5 + 0.01 * n) for n in range(25)),
    Tried("int8 (NNCF), OpenVINO", "accurate", "5.00x, +0.10 points lost on 360 samples", 0.2),
    Tried("int8 (careless), OpenVINO", "wrong", "9.00x, +9.00 points lost on 360 samples", 0.11),
    Tried("compiled C", "failed", "no C compiler is installed"),
    Tried("simplified, LiteRT", "skipped", "nothing to simplify"),
]


def shown(
    tried: list[Tried], width: int = 80, height: int = 24, *reports: Progress
) -> tuple[list[str], str]:
    """The lines of the view, and what was left above it."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height, no_color=True)
    screen = LiveScreen(console, clock=lambda: 65.0)
    outline = Outline((("model", "m.onnx"),), STAGES, limit_s=600.0)
    screen(Progress("prepare", "reading", 0, 1, outline=outline))
    for number, one in enumerate(tried):
        screen(Progress("try", "the next", number, len(tried), f"{one.label}: x", tried=one))
    for report in reports:
        screen(report)
    above = file.getvalue()
    view = Console(file=io.StringIO(), width=width, height=height, record=True)
    view.print(screen.view())
    return view.export_text().splitlines(), above


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("height", [15, 24, 50])
def test_the_view_is_no_larger_than_the_terminal(width: int, height: int) -> None:
    lines, _ = shown(MANY, width, height)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)


def test_the_cursor_stays_so_that_a_killed_run_leaves_it() -> None:
    file = io.StringIO()
    with LiveScreen(Console(file=file, force_terminal=True)) as screen:
        screen(Progress("prepare", "reading", 0, 1))
        drawn = file.getvalue()
        assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")


def test_the_best_stands_first_and_the_baseline_stays_where_not_all_fit() -> None:
    lines, _ = shown(MANY)
    bars = [line for line in lines if "x  " in line]
    assert bars[0].startswith("▸ int8 (NNCF), OpenVINO")
    assert "5.00x  +0.10 points" in bars[0]
    assert bars[-1].strip().endswith("1.00x  default engine")
    assert any("slower or unfit, 1 skipped" in line for line in lines)


def test_what_may_not_ship_stands_last_with_its_reason() -> None:
    lines, _ = shown([MANY[0], *MANY[-4:]])
    assert "extras" in lines[1]
    labels = [line[2:].split("  ")[0] for line in lines[3:7]]
    assert [label.rstrip("━╸ ") for label in labels] == [
        "int8 (NNCF), OpenVINO",
        "original, ONNX Runtime",
        "int8 (careless), OpenVINO",
        "compiled C",
    ]
    assert "9.09x  +9.00 points" in lines[5]
    assert "no C compiler is installed" in lines[6]


def test_a_long_label_is_whole_where_the_terminal_has_room() -> None:
    label = "int8 (ONNX Runtime, per channel, minmax), ONNX Runtime"
    tried = Tried(label, "accurate", "2.15x, +0.11 points lost on 900 samples", 0.465)
    lines, _ = shown([MANY[0], tried], 120)
    assert any(label in line and line.endswith("2.15x  +0.11 points lost") for line in lines)
    for width in (60, 80):
        lines, _ = shown([MANY[0], tried], width)
        assert any("…" in line and line.endswith("2.15x  +0.11 points lost") for line in lines)


def test_a_phase_keeps_its_mark_where_the_line_breaks() -> None:
    lines, _ = shown([MANY[0]], 60)
    assert next(line for line in lines if "final timing" in line).lstrip().startswith("○ final")
    assert not [line for line in lines if line.rstrip().endswith("○")]


def test_a_bar_is_as_long_as_the_latency_and_the_baseline_is_marked() -> None:
    half = Tried("b", "exact", "x", 0.5)
    lines, _ = shown([MANY[0], half])
    first, second = (line for line in lines if "━" in line)
    assert (first.count("━"), second.count("━")) == (4, 9)
    assert first.index("╎") == second.rindex("━") + 1


def test_a_long_name_is_cut_in_its_middle_so_that_its_engine_stays() -> None:
    long = "int8 (ONNX Runtime, per channel, minmax), compiled C"
    lines, _ = shown([Tried(f"{long}{more}", "exact", "x", 0.5) for more in ("", ", 2 threads")])
    names = [line[2:36].rstrip() for line in lines[3:5]]
    assert names == [
        "int8 (ONNX Runti…nmax), compiled C",
        "int8 (ONNX Runti…iled C, 2 threads",
    ]


def test_phases_that_are_finished_are_ticked() -> None:
    lines, _ = shown(MANY[:2], 120, 24, Progress("race", "round 3", 3, 12))
    text = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
    assert "✓ prepare  - exact forms  ✓ search  ● race" in text
    assert "○ certify  ○ final timing  ○ extras" in text
    assert "now 3 of 12: round 3" in text


def test_before_the_first_report_the_view_says_what_is_read() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, record=True)
    console.print(LiveScreen(console).view())
    assert "now: reading the model and the data" in console.export_text()


def test_only_what_is_worth_keeping_is_left_above() -> None:
    news = Progress("exact", "all tried", 3, 3, news="first answer after 8 s: b is exact")
    _, above = shown(MANY, 80, 24, news, Progress("train", "a", 1, 2, "a: trained"))
    for kept in ("m.onnx", "First answer after 8 s: b is exact", "a: trained"):
        assert above.count(kept) == 1
    assert "exact form 3" not in above


def test_the_time_left_is_that_of_the_stage_and_of_those_to_come_within_the_limit() -> None:
    now = [0.0]
    phases = Phases(lambda: now[0])
    assert phases.left_in_words() == ""
    phases.see(Progress("prepare", "", 0, 1, outline=Outline((), STAGES, open_ended=True)))
    phases.see(Progress("try", "", 0, 10, later_s=60.0))
    assert phases.left_in_words() == ""
    now[0] = 20.0
    phases.see(Progress("try", "", 5, 10, later_s=60.0))
    assert phases.left_in_words() == "about 80 s or more left"
    phases.see(Progress("race", "", 0, 10, later_s=300.0))
    phases.see(Progress("race", "", 10, 10, later_s=300.0))
    assert phases.left_in_words() == "about 5 min left"
    phases.see(Progress("race", "", 10, 10, outline=Outline((), STAGES, 60.0), later_s=300.0))
    assert phases.left_in_words() == "about 40 s left"
