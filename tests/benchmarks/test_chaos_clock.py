"""The clock of the chaos run: who sees its jumps, and that a server answers right whatever it says."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.pausing import Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import until

from hasten.core.c_compiler import Compiler
from hasten.errors import InputError

triton = pytest.importorskip("tritonclient.grpc")

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos"
DAY_S, YEAR_S = 86_400, 365 * 86_400
JUMPS_S = (60, -60, DAY_S, -DAY_S, YEAR_S, -YEAR_S)
DEADLINE_S = 120.0
HOUR_S = 3_600
TIMED_OUT = 110
PROGRAM = """
import ctypes, os, platform, signal, sys, time

class Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]

CLOCK_MONOTONIC, WAIT_BY_THE_WALL_CLOCK = 1, 9 | 128 | 256
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
libc = ctypes.CDLL(None, use_errno=True)
word, semaphore, cond, steady, mutex, kind = (ctypes.create_string_buffer(64) for _ in range(6))
libc.sem_init(semaphore, 0, 0)
libc.pthread_condattr_init(kind)
libc.pthread_condattr_setclock(kind, CLOCK_MONOTONIC)
libc.pthread_cond_init(steady, kind)
libc.pthread_mutex_lock(mutex)

def wait(how, end):
    if how == "semaphore":
        return libc.sem_timedwait(semaphore, end) and ctypes.get_errno()
    if how == "futex":
        number = ctypes.c_long(FUTEX)
        failed = libc.syscall(number, word, WAIT_BY_THE_WALL_CLOCK, 0, end, None, ctypes.c_long(-1))
        return failed and ctypes.get_errno()
    found = 0
    while not found:  # it may be woken for no reason
        found = libc.pthread_cond_timedwait(steady if how == "steady" else cond, mutex, end)
    return found

signal.alarm(60)
for line in sys.stdin:
    how, seconds = line.split()
    if how == "now":
        print(time.time(), time.monotonic(), flush=True)
    elif how == "file":
        with open(sys.argv[1], "w") as file:
            print(os.fstat(file.fileno()).st_mtime, flush=True)
    else:
        now_s = time.monotonic() if how == "steady" else time.time()
        end = ctypes.byref(Timespec(int(now_s + float(seconds)), 0))
        print("it waits", flush=True)
        print(wait(how, end), flush=True)
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A clock that can be moved."""
    try:
        Compiler.find()
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(str(CHAOS))
    return importlib.import_module("clock").Clock(tmp_path / "clock")


class Program:
    """A program under a clock that does what it is told, a line each."""

    def __init__(self, clock: Any, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, folder / "written"],
            env={**os.environ, **clock.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, how: str, seconds: float = 0) -> list[float]:
        assert self.process.stdin is not None
        print(how, seconds, file=self.process.stdin, flush=True)
        return [] if how not in ("now", "file") else [float(each) for each in self.said().split()]

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program(clock: Any, tmp_path: Path) -> Iterator[Program]:
    started = Program(clock, tmp_path)
    yield started
    started.kill()


def _is_ahead(found_s: float, jump_s: float) -> bool:
    """Whether a time that was stated just now is so far ahead, to half a minute."""
    return abs(found_s - time.time() - jump_s) < 30


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_jump_moves_the_wall_clock_of_a_program_and_nothing_else(
    clock: Any, program: Program, jump_s: int
) -> None:
    for offset_s in (0, jump_s, 0):
        clock.jump(offset_s)
        before_s = time.monotonic()
        wall_s, steady_s = program.told("now")
        assert _is_ahead(wall_s, offset_s)
        assert before_s <= steady_s <= time.monotonic()
        (changed_s,) = program.told("file")
        assert _is_ahead(changed_s, 0)


@pytest.mark.parametrize("how", ["semaphore", "condition", "futex"])
def test_a_jump_ends_a_wait_for_an_earlier_time_of_the_wall_clock(
    clock: Any, program: Program, how: str
) -> None:
    if how == "futex" and os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the number of this system call isn't known for this processor")
    clock.jump(DAY_S)
    program.told(how, HOUR_S)
    assert program.said() == "it waits"
    clock.jump(2 * DAY_S)
    assert program.said() == str(TIMED_OUT)


def test_a_wait_by_the_monotonic_clock_ends_in_time_whatever_the_wall_clock_says(
    clock: Any, program: Program
) -> None:
    clock.jump(-YEAR_S)
    program.told("steady", 0.01)
    assert [program.said(), program.said()] == ["it waits", str(TIMED_OUT)]


def test_a_killed_program_leaves_the_clock_to_others(
    clock: Any, program: Program, tmp_path: Path
) -> None:
    program.told("semaphore", HOUR_S)
    assert program.said() == "it waits"
    program.kill()
    clock.jump(DAY_S)
    other = Program(clock, tmp_path)
    assert _is_ahead(other.told("now")[0], DAY_S)
    other.kill()


class Asked:
    """A server with a model that pauses, asked over HTTP and gRPC, each time with a deadline."""

    def __init__(self, clock: Any, folder: Path) -> None:
        bundle = bundle_of(folder, models.solid(folder), engine=Pausing())
        self.pauses = Pauses(folder)
        self.server = ServerProcess(
            bundle, "--grpc", "0", "--json-logs", env={**clock.env, **self.pauses.env}
        )

    def http(self, *row: float) -> list[float]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
        asked = {"inputs": [tensor], "parameters": {"timeout": round(DEADLINE_S * 1e6)}}
        answer = self.over_http("POST", "/v2/models/solid/infer", json.dumps(asked))
        found: list[float] = answer["outputs"][0]["data"]
        return found

    def over_http(self, method: str, path: str, body: str | None = None) -> Any:
        with contextlib.closing(http.client.HTTPConnection(self.server.host)) as client:
            client.request(method, path, body)
            return json.loads(client.getresponse().read())

    def grpc(self, *row: float) -> list[float]:
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array([row], np.float32))
        with triton.InferenceServerClient(f"127.0.0.1:{self.server.grpc_port}") as client:
            answer = client.infer("solid", [x], client_timeout=DEADLINE_S)
        found: list[float] = answer.as_numpy("y")[0].tolist()
        return found

    def answered_at_s(self) -> float:
        """When it last answered, as it says."""
        stats = self.over_http("GET", "/v2/models/solid/stats")
        last_ms: int = stats["model_stats"][0]["last_inference"]
        return last_ms / 1000


@pytest.fixture
def asked(clock: Any, tmp_path: Path) -> Iterator[Asked]:
    with pausing_installed(tmp_path / "plug-in"):
        made = Asked(clock, tmp_path)
        with made.server:
            yield made


@pytest.mark.seconds
def test_a_jump_while_a_request_is_answered_makes_it_neither_late_nor_wrong(
    clock: Any, asked: Asked
) -> None:
    with ThreadPoolExecutor() as clients:
        for number, jump_s in enumerate((*JUMPS_S, 0)):
            for way, pause_ms in ((asked.http, 100 + number), (asked.grpc, 200 + number)):
                answer = clients.submit(way, pause_ms, 1, 2, 3)
                until(lambda pause_ms=pause_ms: asked.pauses.begun(pause_ms))  # type: ignore[misc]
                clock.jump(jump_s)
                assert answer.result() == [pause_ms, 1, 2, 3]
                assert _is_ahead(asked.answered_at_s(), jump_s)


def _replaced(server: ServerProcess, killed: int) -> bool:
    """Whether another process than the killed one is ready."""
    with contextlib.suppress(OSError, IndexError, http.client.HTTPException):
        if server.serving_pid() != killed:
            with contextlib.closing(http.client.HTTPConnection(server.host, timeout=1.0)) as client:
                client.request("GET", "/v2/health/ready")
                return client.getresponse().status == 200
    return False


def test_a_server_whose_process_is_killed_after_a_jump_sees_the_same_clock(
    clock: Any, asked: Asked
) -> None:
    asked.http(0, 1, 2, 3)
    assert _is_ahead(asked.answered_at_s(), 0)
    clock.jump(DAY_S)
    killed = asked.server.serving_pid()
    os.kill(killed, signal.SIGKILL)
    until(lambda: _replaced(asked.server, killed))
    assert asked.http(0, 4, 5, 6) == asked.grpc(0, 4, 5, 6) == [0, 4, 5, 6]
    assert _is_ahead(asked.answered_at_s(), DAY_S)
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() + DAY_S))
    until(lambda: f'"time": "{day}' in asked.server.errors)
