"""Runs that are killed or stopped, and taken up again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support.once import made_once
from tests.support.quick import ROUNDS, quick_runs
from tests.support.waiting import until

import hasten
import hasten.optimization.preparation
from hasten.bundle import read
from hasten.cli import main
from hasten.core.progress import Progress
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.environment import versions
from hasten.testing import models

pytestmark = pytest.mark.seconds

ENGINE = "tests.support.rivals:Rival"


class StopError(Exception):
    """What ends a run from within."""


def given(folder: Path) -> Path:
    """Write a model and data."""
    models.linear_classifier(folder)
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(folder / "eval.npz", x=x)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return given(tmp_path)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """What is run in this process; those that are killed have races in processes of their own."""
    with quick_runs(races=False):
        yield


def stop(place: Path, trials: int, **options: Any) -> None:
    """Run until so many trials are in the journal."""

    def listen(_: Progress) -> None:
        if sum(e["kind"] == "trial" for e in events(place)) == trials:
            raise StopError

    with pytest.raises(StopError):
        optimize(place, listen=listen, **options)


def optimize(place: Path, **options: Any) -> None:
    hasten.optimize(
        str(place / "linear_classifier.onnx"),
        str(place / "eval.npz"),
        max_drop=0.05,
        engines=(ENGINE,),
        out=place / "b.hasten",
        **options,
    )


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run that was stopped after two trials; don't go on with it."""
    place = given(tmp_path_factory.mktemp("unfinished"))
    with quick_runs(races=False):
        stop(place, trials=2)
    return place


def words(place: Path) -> list[str]:
    return [
        *("optimize", str(place / "linear_classifier.onnx"), "--data", str(place / "eval.npz")),
        *("--max-drop", "5%", "--engine", ENGINE, "--out", str(place / "b.hasten")),
    ]


def events(place: Path) -> list[dict[str, Any]]:
    journal = place / "b.hasten.work" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def started(place: Path, *moments: str) -> subprocess.Popen[str]:
    """Start a run that stops, as SIGSTOP does, whenever its journal has so many events of a kind."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.quick", *words(place)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HASTEN_TEST_PAUSE": ",".join(moments)},
    )


def wait_for(process: subprocess.Popen[str], place: Path, moment: str) -> None:
    """Wait until a run has stopped at a moment."""
    kind, _, count = moment.rpartition(" ")

    def stopped() -> bool:
        assert process.poll() is None, process.communicate()
        there = sum(e["kind"] == kind for e in events(place)) == int(count)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]
        return there and state == "T"

    until(stopped)


def workers(parent: int) -> list[int]:
    """The worker processes that a run started: each is told its parent's number."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text(errors="replace").rpartition(") ")[2][0]
        except OSError:
            continue
        programs = {b"hasten.measure.worker", b"hasten.measure.forkserver"}
        if programs & {*words} and str(parent).encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


MOMENTS = (
    "trial 1",
    "trial 2",
    "round 2",
    "sealed read 1",
    f"round {ROUNDS + 5}",  # of the fresh ones, in the second process of each
)
"""Moments in a run, in their order."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is killed at the last moment and resumed there, and copies from each moment.

    The copies are in folders named after the moments; copy them again. What the resumed run said is in
    `resumed.json`, and what it left is beside it: its work folder, which the copies' journals name, is gone.
    """
    with made_once(tmp_path_factory, "killed") as (folder, missing):
        if missing:
            place = given(folder)
            process = started(place, *MOMENTS)
            try:
                for moment in MOMENTS:
                    wait_for(process, place, moment)
                    for path in list(place.glob("*.*")):
                        copy = shutil.copytree if path.is_dir() else shutil.copy
                        (place / moment).mkdir(exist_ok=True)
                        copy(path, place / moment / path.name)
                    if moment != MOMENTS[-1]:
                        process.send_signal(signal.SIGCONT)
                assert workers(process.pid)
            finally:
                process.kill()
                process.wait()
            # At once, as a person may: its workers may still be there.
            with quick_runs():
                done = resume(place)
            (place / "resumed.json").write_text(
                json.dumps([done.exit_code, done.stdout, done.stderr])
            )
            process.communicate()
            until(lambda: not workers(process.pid))
    return folder


def resume(place: Path) -> Result:
    """Resume a run on the processors that it began on, which may be those of another process of the suite."""
    os.sched_setaffinity(0, events(place)[0]["facts"]["machine"]["cpus"])  # until `quick_runs` ends
    return CliRunner().invoke(main, [*words(place), "--resume", "--json"])


def check_ended(place: Path, before: list[dict[str, Any]], said: str) -> None:
    """Check that a resumed run ended as one does that was never stopped, and did no trial again."""
    tried = [e["trial"]["candidate"] for e in before if e["kind"] == "trial"]
    frozen = [e for e in before if e["kind"] == "ladder"]
    result = json.loads(said)
    assert result["status"] == "certified"
    assert result["judgement"]["n"] == 140
    assert result["judgement"]["lost"] == 0
    manifest = read(place / "b.hasten")
    assert manifest.winner.engine["lossy"] is True
    assert manifest.certificate is not None
    changed = manifest.certificate["changed"]  # kept with the verdict, where that came before
    assert (changed["n"], changed["share"]) == (140, 0)
    evidence = place / "b.hasten" / "evidence"
    trials = json.loads((evidence / "trials.json").read_text())
    assert [t["candidate"] for t in trials][: len(tried)] == tried
    assert len(trials) == 2
    if frozen:
        judged = json.loads((evidence / "sealed.json").read_text())["judged"]
        assert [key for key, _ in judged] == frozen[0]["choice"]["rungs"]
    assert not (place / "b.hasten.work").exists()


def test_a_killed_run_resumes_where_it_died_and_ends_with_the_same_answer(killed: Path) -> None:
    """It goes on with the files that it made, and with processes of its own in the rounds that are left."""
    last = killed / MOMENTS[-1]
    before = events(last)
    assert any(e["kind"] == "round" and e["race"].startswith("figures/") for e in before)
    assert read(last / "b.hasten").status == "certified"
    code, said, errors = json.loads((killed / "resumed.json").read_text())
    assert code == 0, errors
    check_ended(killed, before, said)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_run_is_resumed_in_another_place_where_what_it_built_is_gone(
    killed: Path, tmp_path: Path, moment: str
) -> None:
    place = Path(shutil.copytree(killed / moment, tmp_path / "place"))
    shutil.rmtree(place / "b.hasten.work" / "artifacts")
    before = events(place)
    assert not (killed / "b.hasten.work").exists()
    done = resume(place)
    assert done.exit_code == 0, done.stderr
    check_ended(place, before, done.stdout)


def test_trials_that_are_done_are_not_run_again(place: Path) -> None:
    stop(place, trials=2)
    before = [e for e in events(place) if e["kind"] == "trial"]

    def listen(progress: Progress) -> None:
        if progress.stage == "race":
            raise StopError

    with pytest.raises(StopError):
        optimize(place, resume=True, listen=listen)
    assert [e for e in events(place) if e["kind"] == "trial"] == before


def test_ctrl_c_says_how_to_go_on_and_leaves_the_best_so_far_marked_uncertified(
    place: Path,
) -> None:
    # A suite that a shell started in the background ignores the signal, and so would the run.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = started(place, "round 1")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(process, place, "round 1")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        "hasten: stopped; finished work is kept: continue with --resume"
    )
    assert "Traceback" not in errors
    until(lambda: not workers(process.pid))
    assert read(place / "b.hasten").status == "uncertified"


def refused(place: Path, **changed: Any) -> str:
    options: dict[str, Any] = {"max_drop": 0.05, "resume": True, **changed}
    data = options.pop("data", str(place / "eval.npz"))
    model = options.pop("model", str(place / "linear_classifier.onnx"))
    with pytest.raises(hasten.InputError) as caught:
        hasten.optimize(model, data, engines=(ENGINE,), out=place / "b.hasten", **options)
    return str(caught.value)


def test_a_resumed_run_is_about_the_same_and_an_unfinished_one_is_never_overwritten(
    unfinished: Path, tmp_path: Path
) -> None:
    work = unfinished / "b.hasten.work"
    other = models.linear_classifier(tmp_path, batch=1)
    fresh = np.random.default_rng(9).standard_normal((300, 16), dtype=np.float32)
    for fact, changed in (
        ("model", {"model": str(other)}),
        ("data", {"data": fresh}),
        ("options", {"max_drop": 0.04}),
        ("options", {"guard": "lost"}),
        ("pipeline", {"pipeline": Pipeline(())}),
    ):
        assert refused(unfinished, **changed) == (
            f"can't resume: the stopped run had another {fact}; give the same value, or remove "
            f"{work}"
        )
    assert refused(unfinished, resume=False) == (
        f"{work} contains an unfinished run: continue it with resume=True, or remove that folder"
    )
    assert len([e for e in events(unfinished) if e["kind"] == "trial"]) == 2


def test_a_run_is_not_resumed_under_another_set_of_versions(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**versions(), "onnxruntime": "99.0"}
    monkeypatch.setattr(hasten.optimization.preparation, "versions", lambda: newer)
    assert refused(unfinished) == (
        "can't resume: the stopped run had another set of versions; give the same value, or remove "
        f"{unfinished / 'b.hasten.work'}"
    )


def with_trial(unfinished: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy an unfinished run, and change the record of its last trial."""
    copied = Path(shutil.copytree(unfinished, place))
    known = events(copied)
    change(next(e for e in reversed(known) if e["kind"] == "trial")["trial"])
    lines = [json.dumps(event) for event in known]
    (copied / "b.hasten.work" / "journal.jsonl").write_text("\n".join([*lines, ""]))
    return copied


@pytest.mark.parametrize("kind", ["engine", "pass", "function"])
def test_a_journal_names_no_code_that_the_command_does_not(
    unfinished: Path, tmp_path: Path, kind: str
) -> None:
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    named = f"{code}:X"
    called, said = "engine", named
    if kind == "function":
        said = "hasten.engines.python_function:PythonFunction"

    def change(trial: dict[str, Any]) -> None:
        nonlocal called
        if kind == "pass":
            called = "pass"
            trial["candidate"]["passes"] = [{"type": named}]
        elif kind == "engine":
            trial["candidate"]["engine"] = {"type": named}
        else:
            trial["candidate"]["engine"] = {"type": said, "function": named}

    place = with_trial(unfinished, tmp_path / "place", change)
    answer = refused(place)
    journal = place / "b.hasten.work" / "journal.jsonl"
    assert answer.startswith(
        f"can't resume: a trial in {journal} can't be used: the {called} {said!r:.100}"
    )
    assert answer.endswith(f"; remove {journal.parent} to start again")
    assert not (tmp_path / "ran").exists()


def test_a_journal_names_no_library_that_the_command_does_not(
    unfinished: Path, tmp_path: Path
) -> None:
    def change(trial: dict[str, Any]) -> None:
        trial["artifact"]["custom_ops"] = ["/evil.so"]

    place = with_trial(unfinished, tmp_path / "place", change)
    folder = place / "b.hasten.work"
    assert refused(place) == (
        f"can't resume: a trial in {folder / 'journal.jsonl'} can't be used: it names the library /evil.so, "
        f"which this run doesn't; remove {folder} to start again"
    )


def test_a_run_is_not_resumed_under_a_metric_that_was_rewritten(place: Path) -> None:
    code = "def score(outputs, labels, exact):\n    return outputs['logits'][:, 0] == exact['logits'][:, 0]\n"
    (place / "mine.py").write_text(code)
    metric = f"{place / 'mine.py'}:score"
    stop(place, trials=1, metric=metric)
    (place / "mine.py").write_text(code.replace("==", ">="))
    assert refused(place, metric=metric) == (
        "can't resume: the stopped run had another file of the metric's function; give the same "
        f"value, or remove {place / 'b.hasten.work'}"
    )


def test_a_finished_bundle_stays_until_a_new_run_has_another(
    place: Path, exact_bundle: Path
) -> None:
    bundle = place / "b.hasten"
    shutil.copytree(exact_bundle, bundle)
    finished = read(bundle)
    found: list[tuple[str | None, bool]] = []

    def look(progress: Progress) -> None:
        found.append((progress.best, read(bundle) == finished))

    optimize(place, listen=look)
    assert any(best is not None for best, _ in found)  # so there was one to write meanwhile
    assert all(kept for _, kept in found)
    assert read(bundle).status == "certified"


def test_with_nothing_to_resume_there_is_one_line(place: Path) -> None:
    assert refused(place) == (
        f"nothing to resume: there is no {place}/b.hasten.work/journal.jsonl; run without resume=True"
    )
    assert sorted(os.listdir(place)) == ["eval.npz", "linear_classifier.onnx"]  # noqa: PTH208
