"""What a server does whose machine fails it: memory runs out, a supervisor dies while its process stands still."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import models
from tests.support.pausing import Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import until

pytestmark = pytest.mark.seconds

PATIENCE_S = 120.0
LARGE_BYTES = 1 << 30
HANGING = 2.0**40
"""To a pausing engine, a hang with the interpreter's lock, so that the loop hangs too."""


@contextlib.contextmanager
def _short_of_memory(pid: int) -> Iterator[None]:
    """Let a process keep what it has, and give it no more."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def _ask(server: ServerProcess, said_bytes: int | None = None) -> tuple[int, str | None, Any]:
    """Ask once; status, Retry-After and JSON."""
    body = _asked(1)
    client = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    headers = {} if said_bytes is None else {"Content-Length": str(said_bytes)}
    client.request("POST", "/v2/models/solid/infer", body, headers)
    response = client.getresponse()
    found = response.status, response.headers["Retry-After"], json.loads(response.read())
    client.close()
    return found


def test_who_asks_while_memory_is_short_is_told_to_retry(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    with ServerProcess(bundle, "--max-body", f"{LARGE_BYTES >> 20}MiB") as server:
        with _short_of_memory(server.serving_pid()):
            short = _ask(server, LARGE_BYTES)
        assert short == (503, "1", {"error": "the server is short of memory: retry later"})
        assert _ask(server)[0] == 200
        until(lambda: "MemoryError" in server.errors)


def test_a_process_whose_engine_hangs_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Else it would keep the port of gRPC from the next one."""
    with pausing_installed(tmp_path / "plug-in"):
        bundle = bundle_of(tmp_path, models.solid(tmp_path), engine=Pausing())
        pauses = Pauses(tmp_path)
        with ServerProcess(bundle, env=pauses.env) as server:
            pid = server.serving_pid()
            client = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
            client.request("POST", "/v2/models/solid/infer", _asked(HANGING))
            until(lambda: pauses.begun(HANGING))
            server.end(signal.SIGKILL)
            until(lambda: _ended(pid))
            client.close()


def test_a_process_whose_loop_hangs_is_replaced(tmp_path: Path) -> None:
    with pausing_installed(tmp_path / "plug-in"):
        bundle = bundle_of(tmp_path, models.solid(tmp_path), engine=Pausing())
        with ServerProcess(bundle, "--max-stall", "1") as server:
            pid = server.serving_pid()
            client = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
            client.request("POST", "/v2/models/solid/infer", _asked(HANGING))
            refused = client.getresponse()
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            client.close()
            until(lambda: _lives(server))
            assert _ended(pid)
            said = r"the serving process's event loop stood still for \d+(\.\d+)? s: killed"
            until(lambda: re.search(said, server.errors) is not None)


def test_where_no_file_may_grow_the_start_fails_with_one_line(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    command = f"{sys.executable} -c 'from hasten.cli import main; main()' serve {bundle} --http 0"
    ended = subprocess.run(
        ["sh", "-c", f"ulimit -f 0; exec {command}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "hasten: can't share memory with the serving process: File too large; see ulimit -f and ulimit -n\n"
    )


HANGING_ONCE = """
import os, sys, time
flag = os.environ.get("HANGING_ONCE", "")
if "hasten.serving.supervision.process" in sys.orig_argv and os.path.exists(flag):
    os.remove(flag)
    time.sleep(600)
"""
"""Module that Python imports at its start: a library may hang so that can't have memory or threads then."""
IMPATIENT = """
import os
from hasten.cli import main
from hasten.serving.supervision import supervisor

start = supervisor.Supervisor._start

def starting(self):
    supervisor.UP_S = 2.0 if os.path.exists(os.environ["HANGING_ONCE"]) else 60.0
    start(self)

supervisor.Supervisor._start = starting
main()
"""
"""A server that gives up a start soon, as long as one is still to hang."""


def test_a_process_that_hangs_at_its_start_is_replaced(tmp_path: Path) -> None:
    bundle, flag = bundle_of(tmp_path, models.solid(tmp_path)), tmp_path / "hang"
    flag.touch()
    (tmp_path / "sitecustomize.py").write_text(HANGING_ONCE)
    places = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": places, "HANGING_ONCE": str(flag)}
    with ServerProcess(bundle, env=env, code=IMPATIENT) as server:
        assert _ask(server)[0] == 200
        assert not flag.exists()
        until(
            lambda: "the serving process didn't start serving within 2 s: killed" in server.errors
        )


def _asked(first: float) -> bytes:
    """Return a request; to a pausing engine its first number is milliseconds."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [first, 2, 3, 4]}
    return json.dumps({"inputs": [tensor]}).encode()


def _lives(server: ServerProcess) -> bool:
    client = http.client.HTTPConnection(server.host, timeout=1.0)
    try:
        client.request("GET", "/v2/health/live")
        return client.getresponse().status == 200
    except TimeoutError:
        return False
    finally:
        client.close()


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
