"""`hasten watch` as a person types it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.support.videos import classifier, pictures, video
from tests.support.waiting import until

from hasten.cli import main
from hasten.cli.watch import in_words, line
from hasten.serving.streams.tally import Watched

pytestmark = pytest.mark.seconds

pytest.importorskip("av")
COMMAND = (sys.executable, "-c", "from hasten.cli import main; main()", "watch")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["watch", *map(str, arguments)])


def test_a_recording_ends_with_a_table_and_its_files(bundle: Path, tmp_path: Path) -> None:
    file = video(tmp_path / "v.mp4", 6)
    seen, lines = tmp_path / "seen.mp4", tmp_path / "d.jsonl"
    result = run(
        *(bundle, "--source", file, "--as-fast-as-possible", "--out", seen, "--decisions", lines)
    )
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.startswith(f"{file}, as fast as possible, watched for ")
    assert head.endswith(" s, to its end")
    assert [row.split()[0] for row in rows] == [
        *("captured", "answered", "dropped", "p50", "p99", "most", "overlay:", "decisions:"),
    ]
    assert rows[:3] == ["captured  6", "answered  6 (100.0%)", "dropped   0"]
    assert rows[-2:] == [f"overlay: {seen}", f"decisions: {lines}"]
    assert len(lines.read_text().splitlines()) == 6


def test_json_gives_counts_and_raw_latencies(bundle: Path, tmp_path: Path) -> None:
    result = run(
        *(
            bundle,
            "--source",
            pictures(tmp_path / "p", 5),
            "--fps",
            40,
            "--deadline",
            "7ms",
            "--json",
        )
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["captured"] == 5 == record["answered"] + record["dropped"]
    assert len(record["latency_ns"]) == record["answered"]
    assert (record["rate_per_s"], record["deadline_ns"]) == (40, 7_000_000)
    assert record["ended"] == "end"


def test_late_decisions_are_dropped_when_asked(bundle: Path, tmp_path: Path) -> None:
    """No frame is decoded within a thousandth of a microsecond, let alone decided on."""
    folder = pictures(tmp_path / "p", 5)
    options = ("--source", folder, "--deadline", "0.000001ms", "--drop-late")
    result = run(bundle, *options, "--decisions", tmp_path / "d.jsonl")
    assert result.exit_code == 0, result.output
    _, *rows = result.stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:4]] == [
        ["answered", "0"],
        ["dropped", "5"],
        ["missed", "0,"],
    ]
    assert (tmp_path / "d.jsonl").read_text() == ""


def test_a_recording_that_is_cut_short_is_answered_as_far_as_it_goes(
    bundle: Path, tmp_path: Path
) -> None:
    file = video(tmp_path / "v.mkv", 60)
    file.write_bytes(file.read_bytes()[: int(0.8 * file.stat().st_size)])
    result = run(bundle, "--source", file, "--as-fast-as-possible")
    assert result.exit_code == 1
    head, *rows = result.stdout.splitlines()
    assert head.endswith(" s, until it failed")
    assert rows[-1].startswith(f"note: {file} is cut short or damaged: ")


def test_errors_are_one_line_with_the_commands_own_flags(bundle: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 1)
    fast = ("--as-fast-as-possible", "--deadline", "9ms")
    late = ("--as-fast-as-possible", "--drop-late")
    for options, said in (
        (("--fps", "0"), "the rate must be above 0 and at most 1000 frames a second: got 0"),
        (("--reconnect", "-1s"), "the time to reconnect must be at least 0 s: got -1 s"),
        (("--for", "0s"), "the length of the watch must be above 0 s: got 0 s"),
        (("--out", "s.gif"), "--out s.gif: give a name that ends in .mp4, .mkv, .mov"),
        (
            fast,
            "--as-fast-as-possible has no deadline, because frames don't come at their recorded times: "
            "leave out one of the two",
        ),
        (
            late,
            "--as-fast-as-possible has no deadline, so no decision can be late: leave out --drop-late",
        ),
    ):
        result = run(bundle, "--source", folder, *options)
        assert (result.exit_code, result.stderr) == (2, f"hasten: {said}\n")
    result = run(bundle, "--source", "v.mp4", "--out", "./v.mp4")
    said = "--out would replace the file of --source, v.mp4: give it another name"
    assert (result.exit_code, result.stderr) == (2, f"hasten: {said}\n")


def test_the_extra_is_named_where_its_library_is_missing(bundle: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['av'] = None; from hasten.cli import main; main()"
    file = str(video(tmp_path / "v.mp4"))
    command = [sys.executable, "-c", code, "watch", str(bundle), "--source", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "hasten: a video needs the extra: pip install 'hasten[video]'\n",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_that_is_stopped_ends_with_the_table_and_whole_files(
    bundle: Path, tmp_path: Path, how: signal.Signals
) -> None:
    folder = pictures(tmp_path / "p", 500)
    out = tmp_path / "out"
    out.mkdir()
    files = ("--out", out / "seen.mp4", "--decisions", out / "d.jsonl")
    command = [*COMMAND, str(bundle), "--source", str(folder), "--fps", "20", *map(str, files)]
    # A suite that a shell started in the background ignores the signal, and so would the watch.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        until(lambda: any(file.read_text() for file in out.glob(".d.jsonl.*")))
        process.send_signal(how)
        text, _ = process.communicate()
    assert process.returncode == 0
    assert text.splitlines()[0].endswith(" s, until it was stopped")
    assert sorted(file.name for file in out.iterdir()) == ["d.jsonl", "seen.mp4"]
    assert (out / "d.jsonl").read_text().endswith("}\n")


def test_a_terminal_shows_the_counts_while_they_grow(bundle: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 20)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, str(bundle), "--source", str(folder), "--fps", "20"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    ) as process:
        process.wait()
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert b" captured, " in shown
    assert b" dropped, " in shown


def test_the_table_says_how_many_dropped_frames_were_decided_late() -> None:
    seen = Watched("s", 30.0, 33_000_000, 9, 7, 2, 0, 0, (5_000_000,), 10**9, "end", late=2)
    assert "late      2 of those dropped, decided after 33 ms" in in_words(seen)[1]
    assert "late" not in "".join(in_words(replace(seen, late=0)))


def test_the_table_says_how_many_frames_were_refused() -> None:
    seen = Watched("s", 30.0, 33_000_000, 9, 7, 2, 0, 0, (5_000_000,), 10**9, "end", refused=2)
    assert "refused   2 of those dropped, which the bundle can't decide on" in in_words(seen)[1]
    assert "refused" not in "".join(in_words(replace(seen, refused=0)))


def test_the_line_says_what_is_counted() -> None:
    seen = Watched(
        "s", 30.0, 33_000_000, 1500, 1490, 10, 3, 0, (5_000_000, 7_120_000), 10**9, "end"
    )
    assert line(seen) == (
        "1,500 captured, 1,490 answered, 10 dropped, 3 missed; p50 5 ms, p99 7.12 ms, most 7.12 ms"
    )
