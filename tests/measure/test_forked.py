import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.desk import Desk
from tests.support.waiting import until

from hasten.core import forked
from hasten.core.processes import descendants
from hasten.core.records import to_record
from hasten.core.workers import Worker
from hasten.engines.null import Null
from hasten.errors import CandidateError

TELLING = """
import os, resource, signal, subprocess, sys, threading
from contextlib import contextmanager
from dataclasses import dataclass
import numpy as np
from hasten.engines.null import Null, NullSession

class Session(NullSession):
    def __init__(self, artifact, expression):
        super().__init__(artifact)
        self.expression = expression

    def properties(self):
        return {"told": eval(self.expression)}

@dataclass(frozen=True)
class Telling(Null):
    expression: str = "None"

    @contextmanager
    def open(self, artifact, target):
        yield Session(artifact, self.expression)
"""


class Teller:
    """Starts workers that evaluate a Python expression, and ends them."""

    def __init__(self, desk: Desk, file: Path) -> None:
        file.write_text(TELLING)
        self.type = f"{file}:Telling"
        self.desk = desk
        self.artifact = to_record(desk.open(Null()).artifact)
        self.workers: list[Worker] = []

    def start(self, *, fresh: bool = False) -> Worker:
        self.workers.append(Worker(self.desk.bench.log, 1 << 30, fresh=fresh))
        return self.workers[-1]

    def ask(self, worker: Worker, expression: str) -> Any:
        engine = {"type": self.type, "expression": expression}
        target = to_record(self.desk.bench.target)
        asked = {"engine": engine, "artifact": self.artifact, "target": target}
        return worker.ask("open", limit_s=60, **asked)["told"]

    def told(self, expression: str, *, fresh: bool = False) -> Any:
        return self.ask(self.start(fresh=fresh), expression)


@pytest.fixture
def teller(desk: Desk, tmp_path: Path) -> Iterator[Teller]:
    teller = Teller(desk, tmp_path / "telling.py")
    yield teller
    for worker in teller.workers:
        worker.kill()


def command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def is_forked(worker: Worker) -> bool:
    return "hasten.measure.forkserver" in command(worker.pid)


def server_of(worker: Worker) -> int:
    return int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


FACTS = {
    "the environment": "{k: v for k, v in os.environ.items() if k != 'TMPDIR'}",
    "the folder": "os.getcwd()",
    "where modules are looked for": "sys.path[:-1]",  # the last is the engine's own file's
    "flags": "str(sys.flags)",
    "processors": "sorted(os.sched_getaffinity(0))",
    "priority": "os.nice(0)",
    "the mask of files": "os.umask(0)",
    "limits": "[resource.getrlimit(n) for n in range(16)]",
    "signals": "[str(signal.getsignal(n)) for n in sorted(signal.valid_signals())]",
    "blocked signals": "sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "a session of its own": "[os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()]",
    "files": "[os.readlink(f'/proc/self/fd/{n}') for n in range(3)]",
    "no other files": "sum(os.path.exists(f'/proc/self/fd/{n}') for n in range(64))",
    "encodings": "[f.encoding + f.errors for f in (sys.stdin, sys.stdout, sys.stderr)]",
    "who dies first": "open('/proc/self/oom_score_adj').read()",
    "threads of a product": "[(np.ones((600, 600)) @ np.ones((600, 600))).size, len(os.listdir('/proc/self/task'))]",
}


def all_told(teller: Teller, *, fresh: bool) -> dict[str, Any]:
    worker = teller.start(fresh=fresh)
    assert is_forked(worker) is not fresh
    return {what: teller.ask(worker, expression) for what, expression in FACTS.items()}


def test_a_forked_worker_is_in_every_way_as_one_that_was_started(teller: Teller) -> None:
    assert all_told(teller, fresh=False) == all_told(teller, fresh=True)


CHANGED = """
import os, resource, signal, sys
from pathlib import Path
from tests.measure.test_forked import FACTS, Teller, all_told, is_forked
from tests.support.desk import Desk

folder = Path(sys.argv[1])
with Desk(folder) as desk:
    teller = Teller(desk, folder / "telling.py")
    before = all_told(teller, fresh=False)
    for what, change in (
        ("the environment", lambda: os.environ.update(HASTEN_TEST="1")),
        ("the folder", lambda: os.chdir("/")),
        ("priority", lambda: os.nice(1)),
        ("the mask of files", lambda: os.umask(0o057)),
        ("limits", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))),
        ("signals", lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)),
        ("blocked signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])),
        ("processors", lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})),
    ):
        change()
        with teller.start() as worker:
            assert is_forked(worker)
            if teller.ask(worker, FACTS[what]) == before[what]:
                print(what)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] += ":/nowhere"
    after = all_told(teller, fresh=False)
    assert "/nowhere" in after["where modules are looked for"]
    assert after == all_told(teller, fresh=True)
    for worker in teller.workers:
        worker.kill()
"""


def alone(*script: str, **how: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    words = [sys.executable, *script]
    return subprocess.run(words, capture_output=True, text=True, env=environment, **how)


def test_what_its_owner_changed_since_holds_for_a_forked_worker(tmp_path: Path) -> None:
    done = alone("-c", CHANGED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    unchanged = {*done.stdout.split("\n")} - {""}
    assert unchanged == ({"processors"} if len(os.sched_getaffinity(0)) == 1 else set())


def test_a_change_in_the_owner_alone_is_no_forked_workers(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.core.telemetry.OFF", {"patched": "yes"})
    told = teller.told("__import__('hasten.core.telemetry').core.telemetry.OFF")
    assert "patched" not in told


def test_a_forked_worker_starts_without_a_runtime_and_its_server_without_a_thread(
    teller: Teller,
) -> None:
    worker = teller.start()
    imported = teller.ask(worker, "sorted({name.partition('.')[0] for name in sys.modules})")
    assert {"numpy", "msgspec", "hasten"} <= {*imported}
    runtimes = {"onnx", "onnxruntime", "openvino", "torch", "tensorflow", "scipy", "ai_edge_litert"}
    assert not runtimes & {*imported}
    assert len(list(Path(f"/proc/{server_of(worker)}/task").iterdir())) == 1


def test_workers_of_one_server_differ_in_what_is_drawn_by_chance(teller: Teller) -> None:
    drawn = "[__import__('random').random(), np.random.default_rng().random(), np.random.random()]"
    one, other = teller.told(drawn), teller.told(drawn)
    assert not {*one} & {*other}


def test_workers_whose_figures_are_quoted_share_no_address_layout(desk: Desk) -> None:
    def heap(worker: Worker) -> str:
        lines = Path(f"/proc/{worker.pid}/maps").read_text().splitlines()
        return next(line.partition("-")[0] for line in lines if line.endswith("[heap]"))

    artifact = desk.open(Null()).artifact
    for _ in range(2):
        desk.opened.append(desk.bench.open_built(Null(), artifact))
    assert heap(desk.opened[1].worker) != heap(desk.opened[2].worker)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_worker_that_ends_by_itself_is_reported_with_its_exit_code(
    teller: Teller, fresh: bool
) -> None:
    with pytest.raises(CandidateError) as error:
        teller.told("os._exit(3)", fresh=fresh)
    assert str(error.value) == "its process ended with exit code 3 during 'open'"


def test_an_owner_that_ignores_its_childrens_end_hears_of_its_workers(teller: Teller) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        worker = teller.start()
        with pytest.raises(CandidateError) as error:
            teller.ask(worker, "os._exit(3)")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert str(error.value) == "its process ended with exit code 3 during 'open'"


def test_the_number_of_a_forked_worker_is_its_own_until_it_is_given_back(teller: Teller) -> None:
    worker = teller.start()
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not worker.alive)
    assert Path(f"/proc/{worker.pid}").exists()
    worker.kill()
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_lost_server_costs_its_workers_and_no_others(teller: Teller) -> None:
    worker = teller.start()
    server = server_of(worker)
    os.kill(server, signal.SIGKILL)
    until(lambda: not running(worker.pid))  # else it may answer before its server has ended
    with pytest.raises(CandidateError) as error:
        teller.ask(worker, "1")
    assert str(error.value) == "its process was killed by SIGKILL during 'open'"
    assert teller.told("1") == 1
    later = teller.start()
    assert is_forked(later)
    assert server_of(later) != server


def test_where_another_thread_runs_in_the_server_nothing_is_forked(
    teller: Teller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    thread = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(thread)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    worker = teller.start()
    assert not is_forked(worker)
    assert teller.ask(worker, "threading.active_count()") == 2


def test_where_the_system_cannot_watch_a_process_nothing_is_forked(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    worker = teller.start()
    assert not is_forked(worker)
    assert teller.ask(worker, "1") == 1


def test_a_server_that_is_replaced_lives_as_long_as_its_workers(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_TEST", "0")  # so that it shares no server with other tests
    worker = teller.start()
    former = server_of(worker)
    for one in teller.desk.opened:
        one.worker.kill()
    monkeypatch.setenv("HASTEN_TEST", "1")
    assert server_of(teller.start()) != former
    assert teller.ask(worker, "1") == 1
    worker.kill()
    teller.workers.remove(worker)
    del worker
    until(lambda: not running(former))


BESIDE = """
import sys
from pathlib import Path
from tests.measure.test_forked import Teller, is_forked
from tests.support.desk import Desk

folder = Path(sys.argv[1])
with Desk(folder) as desk:
    teller = Teller(desk, folder / "telling.py")
    for fresh in (False, True):
        with teller.start(fresh=fresh) as worker:
            print(is_forked(worker), teller.ask(worker, sys.argv[2]))
"""
PLANTED = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def test_modules_in_the_current_folder_do_not_run_in_a_worker(tmp_path: Path) -> None:
    for name in ("numpy.py", "socket.py", "hasten/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PLANTED)
    (tmp_path / "work").mkdir()
    done = alone("-P", "-c", BESIDE, str(tmp_path / "work"), "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.rglob("ran")]
    assert done.stdout.splitlines() == ["True 1", "False 1"]


def test_a_worker_finds_the_modules_beside_a_script_that_is_run_in_its_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text("ANSWER = 42")
    (tmp_path / "script.py").write_text(BESIDE)
    (tmp_path / "work").mkdir()
    asked = "__import__('mine').ANSWER"
    done = alone("script.py", str(tmp_path / "work"), asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 42", "False 42"]


OWNER = """
import os, signal, sys, time
from pathlib import Path
from tests.measure.test_forked import Teller, is_forked
from tests.support.desk import Desk

signal.signal(signal.SIGUSR1, lambda *_: sys.exit())
folder = Path(sys.argv[1])
desk = Desk(folder)
teller = Teller(desk, folder / "telling.py")
worker = teller.start()
teller.ask(worker, "subprocess.Popen(['sleep', '600']).pid")
assert is_forked(worker)
worker.sleep()
fork = os.fork()  # holds all that its parent had open, and outlives it
if fork == 0:
    signal.alarm(500)  # longer than anyone waits for the family
    time.sleep(500)
    os._exit(0)
print(fork, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1"])  # the last: sys.exit
def test_nothing_is_left_of_an_owner_however_it_ends(tmp_path: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}"}
    words = [sys.executable, "-", str(tmp_path)]  # a script that can't be imported
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        owner = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.write(OWNER)
        owner.stdin.close()
        fork = int(owner.stdout.readline())
        family = [pid for pid in descendants(owner.pid) if pid != fork]
        owner.send_signal(signal.Signals[how])
        assert len(family) >= 3  # a server, a worker, its program
        owner.wait()
    try:
        until(lambda: not any(map(running, family)))
    finally:
        os.kill(fork, signal.SIGKILL)


FORKING = """
import os, sys
from pathlib import Path
from tests.measure.test_forked import Teller, is_forked, server_of
from tests.support.desk import Desk

folder = Path(sys.argv[1])
with Desk(folder) as desk:
    teller = Teller(desk, folder / "telling.py")
    mine = server_of(teller.start())
    child = os.fork()
    if child == 0:
        worker = teller.start()
        assert is_forked(worker) and server_of(worker) != mine
        assert teller.ask(worker, "1") == 1
        worker.kill()
        sys.exit(7)  # with all that is done at an interpreter's end
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    worker = teller.start()
    assert server_of(worker) == mine and teller.ask(worker, "2") == 2
    for worker in teller.workers:
        worker.kill()
"""


def test_a_fork_of_the_owner_has_a_server_of_its_own(tmp_path: Path) -> None:
    done = alone("-c", FORKING, str(tmp_path), timeout=500)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_stops_its_server_holds_nothing_up(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's model may have taken the process over."""
    monkeypatch.setattr(forked, "_END_S", 1.0)
    monkeypatch.setattr(forked, "_current", None)  # the server of other tests' workers stays
    stop = "os.kill(os.getppid(), signal.SIGSTOP)"
    worker = teller.start()
    assert is_forked(worker)  # otherwise this process would be stopped
    server = server_of(worker)
    teller.ask(worker, stop)
    worker.kill()
    until(lambda: not running(server) and not running(worker.pid))
    other = teller.start()
    assert is_forked(other)
    server = server_of(other)
    teller.ask(other, stop)
    monkeypatch.setattr(forked, "_START_S", 2.0)
    third = teller.start()  # while the server is stopped
    assert teller.ask(third, "1") == 1
    until(lambda: not running(server) and not running(other.pid))


@pytest.mark.parametrize("junk", ["3", "{}", "[" * 5000, "{"])
def test_a_reply_that_is_none_ends_the_worker(teller: Teller, junk: str) -> None:
    """A stranger's model may have taken the process over."""
    worker = teller.start()
    with pytest.raises(CandidateError) as error:
        teller.ask(worker, f"os.write(3, {junk!r}.encode() + b'\\n')")
    assert str(error.value) == "its process answered what can't be read during 'open', killed"
    assert not worker.alive
