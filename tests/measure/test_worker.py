import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.waiting import until

from hasten.core.processes import name_of, programs
from hasten.core.raised import REMEDY
from hasten.core.records import to_record
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.workers import Worker
from hasten.engines.base import Session
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.measure import worker as worker_file
from hasten.measure.latency import Pace, rounds
from hasten.measure.scenario import Offer
from hasten.measure.worker import request_of, time_requests


@pytest.fixture(params=["forked", "fresh"])
def either(desk: Desk, request: pytest.FixtureRequest) -> Desk:
    """A desk whose workers are of one kind or the other."""
    desk.fresh = request.param == "fresh"
    return desk


BRIEF = {"warmup_ns": 0, "block_ns": 0, "at_least": 2, "at_most": 2}
PACE = Pace(warmup_ns=0, block_ns=0, at_least=2, at_most=2)


def predict(worker: Worker, spool: Spool, folder: Path, **limits: Any) -> Any:
    asked = {"samples": str(spool.folder), "start": 0, "stop": 3, "first": 100}
    return worker.ask("predict", out=str(folder / "out"), **{"limit_s": 60.0, **asked, **limits})


def test_latencies_hold_all_that_a_request_takes(desk: Desk, spool: Spool) -> None:
    assert min(timed(desk.worker(Faulty(Null(), busy_ns=2_000_000)), spool)) >= 2_000_000


def timed(worker: Worker, spool: Spool, limit_s: float = 60.0) -> Any:
    return worker.ask("time", limit_s=limit_s, samples=str(spool.folder), first=0, **BRIEF)


def state(pid: int) -> str:
    """The process's state letter in /proc; "gone" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


class TestTimeRequests:
    class Clock:
        def __init__(self) -> None:
            self.now = 0

        def __call__(self) -> int:
            return self.now

    def taken(self, *costs: int, **settings: int) -> tuple[list[int], list[int]]:
        clock, seen = self.Clock(), []

        def run(request: dict[str, Any]) -> None:
            seen.append(int(request["cost"]))
            clock.now += seen[-1]

        limits: dict[str, Any] = {
            "warmup_ns": 0,
            "block_ns": 0,
            "at_least": 1,
            "at_most": 100,
            **settings,
        }
        requests = [{"cost": np.array(cost)} for cost in costs]
        return time_requests(run, requests, clock_ns=clock, **limits), seen

    def test_latencies_are_those_after_the_warm_up_in_order(self) -> None:
        latencies, seen = self.taken(10, 20, 30, warmup_ns=25, at_least=4)
        assert latencies == [30, 10, 20, 30]
        assert seen == [10, 20, 30, 10, 20, 30]

    def test_the_warm_up_says_how_many_fit_into_a_block(self) -> None:
        assert self.taken(10, warmup_ns=50, block_ns=200)[0] == [10] * 20

    def test_a_slow_model_gets_its_fewest_requests(self) -> None:
        assert self.taken(1000, block_ns=10, at_least=3)[0] == [1000] * 3

    def test_a_fast_model_gets_no_more_than_its_most(self) -> None:
        assert self.taken(1, block_ns=1000, at_most=7)[0] == [1] * 7

    def test_no_time_at_all_is_no_division_by_zero(self) -> None:
        assert self.taken(0, block_ns=1000, at_most=5)[0] == [0] * 5

    def test_no_requests_are_refused(self) -> None:
        with pytest.raises(InputError) as error:
            self.taken()
        assert str(error.value) == "nothing to time: got no requests"


def test_a_request_has_the_rank_that_the_model_takes_even_none() -> None:
    sample = {"x": np.zeros((1, 3), np.float32), "scale": np.ones(1, np.float32)}
    specs = [TensorSpec("x", "float32", (1, 3)), TensorSpec("scale", "float32", ())]
    assert {k: v.shape for k, v in request_of(sample, specs).items()} == {"x": (1, 3), "scale": ()}
    (one,) = request_of(sample, [TensorSpec("x", "float32", (3,))]).values()
    assert one.shape == (3,)


def test_requests_are_no_more_than_memory_should_hold(
    desk: Desk, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.measure import worker

    process = worker._Process()
    process.request = desk.model.request
    assert len(process._requests(spool, 0)) == 20
    monkeypatch.setattr(worker, "_REQUEST_BYTES", 3 * 64)
    requests = process._requests(spool, 18)
    assert len(requests) == 3
    np.testing.assert_array_equal(requests[2]["x"], spool.inputs([0])["x"])


def test_a_worker_answers_as_the_engine_does(desk: Desk, spool: Spool, tmp_path: Path) -> None:
    opened = desk.open(OnnxRuntime(threads=1))
    with OnnxRuntime(threads=1).open(opened.artifact, desk.bench.target) as session:
        here = np.concatenate(
            [session.run({"x": spool.inputs([i])["x"]})["logits"] for i in range(20)]
        )
    (there,) = desk.bench.predict(opened, spool)
    np.testing.assert_array_equal(there["logits"], here)
    assert opened.properties["threads"] == "1"
    assert desk.bench.predict_one(opened, spool)["logits"].shape == (1, 4)
    assert not list(desk.bench.folder.glob("outputs-*"))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_killed_worker_is_reported_with_its_signal(
    either: Desk, spool: Spool, tmp_path: Path, name: str
) -> None:
    worker = either.worker(Null())
    os.kill(worker.pid, signal.Signals[name])
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path)
    assert str(error.value) == f"its process was killed by {name} during 'predict'"
    assert not worker.alive


def test_a_fault_within_a_run_ends_the_worker_only(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    worker = desk.worker(Faulty(Null(), "kill", on_run=2))
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path)
    assert str(error.value) == "its process was killed by SIGKILL during 'predict'"


@pytest.mark.parametrize("asleep", [True, False])
def test_a_worker_that_died_between_two_commands_is_a_failed_candidate(
    either: Desk, spool: Spool, asleep: bool
) -> None:
    worker = either.worker(Null())
    if asleep:
        worker.sleep()
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: state(worker.pid) in ("Z", "gone"))
    worker.sleep()
    worker.wake()
    with pytest.raises(CandidateError) as error:
        timed(worker, spool)
    assert str(error.value) == "its process was killed by SIGKILL during 'time'"


def test_asking_a_worker_that_was_ended_is_a_failed_candidate(either: Desk, spool: Spool) -> None:
    worker = either.worker(Null())
    worker.kill()
    worker.kill()
    with pytest.raises(CandidateError) as error:
        timed(worker, spool)
    assert str(error.value) == "its process was killed by SIGKILL during 'time'"


def test_ending_a_worker_twice_signals_nobody_else(
    either: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = either.worker(Null())
    worker.kill()

    signalled: list[object] = []  # its number may be another process's by now
    monkeypatch.setattr(os, "killpg", lambda *given: signalled.append(given))
    worker.kill()
    worker.sleep()
    worker.wake()
    assert signalled == []


def test_an_ended_worker_leaves_no_process_and_no_descriptor(either: Desk) -> None:
    either.worker(Null()).kill()  # a server that forks stays
    gc.collect()  # else what earlier tests left open may be closed meanwhile
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    worker = either.worker(Null())
    worker.kill()
    assert state(worker.pid) == "gone"
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


LITTERING = """
import os, subprocess, tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from hasten.engines.null import Null, NullSession

class Session(NullSession):
    def properties(self):
        mine = tempfile.mkdtemp()
        return {
            "mine": mine,
            "a child's": subprocess.check_output(["mktemp", "--directory"], text=True).strip(),
            "cache": os.environ["TORCHINDUCTOR_CACHE_DIR"],
        }

@dataclass(frozen=True)
class Littering(Null):
    @contextmanager
    def open(self, artifact, target):
        yield Session(artifact)
"""


@pytest.mark.parametrize("how", ["killed", "died"])
def test_temporary_files_of_a_worker_go_with_it(desk: Desk, tmp_path: Path, how: str) -> None:
    (tmp_path / "littering.py").write_text(LITTERING)
    artifact = desk.open(Null()).artifact
    before = set(desk.bench.folder.iterdir())
    with Worker(desk.bench.log, 1 << 30) as worker:
        left = worker.ask(
            "open",
            limit_s=60,
            engine={"type": f"{tmp_path}/littering.py:Littering"},
            artifact=to_record(artifact),
            target=to_record(desk.bench.target),
        )
        folders = [Path(left["mine"]), Path(left["a child's"])]
        assert all(folder.is_dir() for folder in folders)
        if how == "died":
            os.kill(worker.pid, signal.SIGKILL)
    assert not any(folder.exists() for folder in folders)
    assert set(desk.bench.folder.iterdir()) == before
    # What torch has compiled is for all workers, and stays.
    cache_dir_utils = pytest.importorskip("torch._inductor.runtime.cache_dir_utils")
    own = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert left["cache"] == (own or cache_dir_utils.default_cache_dir())


def test_a_worker_that_cannot_start_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(FileNotFoundError):
        Worker(tmp_path / "log", 1 << 30)
    with pytest.raises(FileNotFoundError):
        Worker(tmp_path / "no folder" / "log", 1 << 30)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_a_worker_that_hangs_is_killed_at_its_limit(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    worker = desk.worker(Faulty(Null(), "hang"))
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path, limit_s=1.0)
    assert str(error.value) == "hung: no answer within 1 s, killed"
    assert state(worker.pid) == "gone"


def test_a_program_that_hangs_a_worker_is_named_and_killed_with_it(
    either: Desk, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = either.worker(Faulty(Null(), "wait"))

    class Clock:
        """A clock whose time is up once the program runs, which may be before the limit begins."""

        began = False

        def monotonic(self) -> float:
            if self.began and "sleep" in map(name_of, programs(worker.pid)):
                return 1e9
            self.began = True
            return 0.0

    monkeypatch.setattr("hasten.core.workers.time", Clock())
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path, limit_s=2.0)
    assert str(error.value) == "hung: no answer within 2 s while sleep ran, killed"
    assert state(worker.pid) == "gone"


@pytest.mark.parametrize("do", ["predict", "time"])
def test_a_worker_that_takes_too_much_memory_is_killed(
    desk: Desk, spool: Spool, tmp_path: Path, do: str
) -> None:
    worker = desk.worker(Faulty(Null(), "allocate"))
    worker.memory_bytes = 256 << 20
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path) if do == "predict" else timed(worker, spool)
    held = str(error.value).partition("it held ")[2].partition(" MiB")[0]
    assert str(error.value) == (
        f"ran out of memory: it held {held} MiB of the 256 MiB that a trial may take, killed"
    )
    assert int(held) >= 256  # in whole MiB
    assert state(worker.pid) == "gone"


def test_the_kernel_would_end_a_worker_before_its_parent(desk: Desk) -> None:
    worker = desk.worker(Null())
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "1000\n"


def test_nan_is_reported_with_the_output_and_the_sample(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    worker = desk.worker(Faulty(OnnxRuntime(threads=1), "nan"))
    with pytest.raises(CandidateError) as error:
        predict(worker, spool, tmp_path)
    assert str(error.value) == "output 'logits' has NaN or Inf for sample 100"
    assert worker.alive


def test_what_went_wrong_inside_is_one_line_here_and_whole_in_the_log(desk: Desk) -> None:
    worker = desk.worker(Null())
    with pytest.raises(CandidateError) as error:
        worker.ask("build", limit_s=60)
    assert str(error.value) == "KeyError: 'engine'"
    log = desk.bench.log.read_text()
    assert log.startswith("Traceback (most recent call last):")
    assert log.endswith("KeyError: 'engine'\n")


def test_bad_input_found_by_a_worker_stays_the_callers(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    worker = desk.worker(Null())
    (spool.folder / "index.json").unlink()
    with pytest.raises(InputError) as error:
        predict(worker, spool, tmp_path)
    assert str(error.value) == f"{spool.folder / 'index.json'} is missing"


def test_a_sleeping_worker_does_not_run(either: Desk, spool: Spool) -> None:
    worker = either.worker(OnnxRuntime(threads=1))

    def ticks() -> list[str]:
        return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    def stopped() -> bool:
        tasks = Path(f"/proc/{worker.pid}/task").glob("*/stat")
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks} == {"T"}

    worker.sleep()
    until(stopped)  # a thread on another core stops a moment later
    before = ticks()
    time.sleep(0.1)
    assert ticks() == before
    assert len(timed(worker, spool)) == 2  # a command wakes it
    assert state(worker.pid) != "T"


def test_only_one_entrant_is_awake_at_a_time(desk: Desk, spool: Spool) -> None:
    workers = {name: desk.worker(Null()) for name in "abc"}

    class Watched(dict[str, Worker]):
        def __getitem__(self, name: str) -> Worker:
            others = [w.pid for who, w in workers.items() if who != name]
            until(lambda: all(state(pid) == "T" for pid in others))
            return super().__getitem__(name)

    turns = rounds(Watched(workers), spool.folder, threads=1, pace=PACE, seed=0)
    assert [set(next(turns).latency_ns) for _ in range(2)] == [{*"abc"}] * 2


PARENT = """
import sys, time
from pathlib import Path
from hasten.core.workers import Worker
worker = Worker(Path(sys.argv[1]), 1 << 30)
try:
    worker.ask("no such command", limit_s=60)
except Exception:
    pass
if sys.argv[2] == "asleep":
    worker.sleep()
print(worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["asleep", "awake"])
def test_a_worker_dies_with_its_parent(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if how == "asleep":
            until(lambda: state(pid) == "T")
        parent.kill()
    # Whoever adopts orphans here may be slow to reap them: a zombie has ended too.
    until(lambda: state(pid) in ("gone", "Z", "X"))


def test_a_large_sample_is_answered_too(desk: Desk, tmp_path: Path) -> None:
    data = ArrayDataset({"x": np.zeros((130, 16), np.float32)})
    spool = write_spool(data, tmp_path / "many")
    chunks = list(desk.bench.predict(desk.open(Null()), spool))
    assert [len(chunk["logits"]) for chunk in chunks] == [64, 64, 2]


def test_what_a_runtime_did_not_mean_to_raise_is_told_with_its_name_and_what_to_try(
    desk: Desk, tmp_path: Path
) -> None:
    worker = desk.worker(Null())
    with pytest.raises(CandidateError) as error:
        worker.ask("build", engine=to_record(Null()), workdir=str(tmp_path / "b"), limit_s=60)
    assert re.fullmatch(
        rf"{Null().words()} failed: it stopped in worker\.py:\d+ \(KeyError: 'model'\); {REMEDY}",
        str(error.value),
    )


class Noting(Session):
    """A session that notes what it is asked, in order."""

    outputs: tuple[TensorSpec, ...] = ()
    batch_sizes = None

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.asked: list[str] = []

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self.asked.append("run")
        return {}

    def settle(self, again: Callable[[], object]) -> None:
        self.asked.append("settle")
        again()
        self.asked.append("warm")

    def device_times(self) -> dict[str, str]:
        return {"stream_ns": "1500"}


@pytest.mark.parametrize("do", ["time", "drive", "load"])
def test_a_device_is_warm_before_anything_is_timed(do: str, desk: Desk, spool: Spool) -> None:
    process, session = worker_file._Process(), Noting(desk.model.inputs)
    process.session, process.sessions = session, [session]
    process.inputs, process.request = desk.model.inputs, desk.model.request
    lengths = {"warmup_ns": 0, "block_ns": 1, "at_least": 2, "at_most": 2}
    command = {"samples": str(spool.folder), "first": 0, "batch": 1, "requests": 4, **lengths}
    getattr(process, do)({**command, "offer": to_record(Offer("single-stream", 2, 0.0, 100.0))})
    assert session.asked[:3] == ["settle", "run", "warm"]
    assert session.asked.count("settle") == 1
    assert set(session.asked[3:]) == {"run"}
    assert process.device_times({}) == {"stream_ns": "1500"}
