"""A process that was forked while other threads were in calls answers as its parent does."""

from __future__ import annotations

import contextlib
import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support import models as small_models
from tests.support import recurrent
from tests.support.bundles import built, stated
from tests.support.servers import bundle_of

from hasten.bundle import write
from hasten.bundle.packing.writer import pack
from hasten.core.sequences import Sequences
from hasten.engines.compiled.engine import CompiledC
from hasten.testing import models

FORKED = """
import asyncio, os, signal, sys, threading, time
import numpy as np
import hasten
from hasten.core.memory_folder import SealedFile
from hasten.engines import pool as pools

x = np.ones((1, 16), np.float32)
large = np.ones((200_000, 16), np.float32)
inside, go = threading.Event(), threading.Event()

def held():
    inside.set()
    go.wait()

def held_up():
    with pools._OPENING, SealedFile._lock, packed._stored._lock:
        fast._pool.turn(held)

with hasten.load(sys.argv[1], sessions=1) as fast, hasten.load(sys.argv[2]) as packed:
    expected = fast(x)["logits"]
    asyncio.run(fast.answer(x))
    threads = [threading.Thread(target=held_up), threading.Thread(target=fast, args=(large,))]
    for thread in threads:
        thread.start()
        inside.wait()
    while not fast._pool._line:
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends a process that waits for ever
        answers = [fast(x), asyncio.run(fast.answer(x))]
        with hasten.load(sys.argv[1]) as again:
            answers.append(again(x))
        answers.append(packed(packed.requests[0]))
        fast.close()
        equal = all(np.array_equal(answer["logits"], expected) for answer in answers)
        os._exit(0 if equal else 1)
    _, status = os.waitpid(child, 0)
    go.set()
    for thread in threads:
        thread.join()
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_answers_though_another_thread_was_in_a_call(tmp_path: Path) -> None:
    request = {"x": np.ones((1, 16), np.float32)}
    model = models.linear_classifier(tmp_path)
    bundle = bundle_of(tmp_path, model, engine=CompiledC(), requests=[request])
    packed = pack(bundle, tmp_path / "packed.hastenz").path
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle), str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


FORKED_TWICE = """
import os, shutil, signal, sys
import hasten

hasten.load(sys.argv[1], cache=sys.argv[2]).close()
with hasten.load(sys.argv[1], cache=sys.argv[2], sessions=2) as packed:
    def unpacks():
        shutil.rmtree(sys.argv[2])  # so that another session needs the model's files
        packed._pool._grow()
        kept = [request["x"] for request in packed.requests]
        return len(packed._pool._sessions) == 2 and len(kept) == 4 and packed._pool._refused == ""
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(60)
            os._exit(0 if unpacks() else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(int(not unpacks()))
"""


@pytest.mark.seconds
@pytest.mark.parametrize("web", [False, True])
def test_what_a_packed_bundle_unpacks_late_is_each_processs_own(
    tmp_path: Path, *, web: bool
) -> None:
    rng = np.random.default_rng(0)
    requests = [{"x": rng.standard_normal((1, 16, 16, 16)).astype(np.float32)} for _ in range(4)]
    part = built(tmp_path, small_models.depthwise_cnn(tmp_path), CompiledC())
    noise = {"noise.bin": rng.bytes(1 << 20)}  # what a stream that two processes read goes on with
    write(tmp_path / "model.hasten", stated(part, part), {}, noise, requests)
    packed = pack(tmp_path / "model.hasten").path
    with contextlib.ExitStack() as serving:
        place = f"{serving.enter_context(files_at(tmp_path))}/{packed.name}" if web else packed
        command = [sys.executable, "-W", "ignore", "-c", FORKED_TWICE, str(place), "kept"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n0\n0\n"), done.stderr


@contextlib.contextmanager
def files_at(folder: Path) -> Iterator[str]:
    """Address of a web server of a folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FORKED_SESSION = """
import os, signal, sys, threading, time
import numpy as np
import hasten

x = np.ones((1, 12), np.float32)
inside, go = threading.Event(), threading.Event()

def held():
    inside.set()
    go.wait()

def reading():
    with session._busy:  # as who copies the states
        held()

def forked(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
        inside.wait()
    while len(threads) > 1 and not fast._pool._line:
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends a process that waits for ever
        state, before = session.states["h"], session.steps
        steps = [session(x) for _ in range(2)]
        session.reset()
        answers = [session(x), *steps]
        equal = np.array_equal(state, states[before])
        for step, answer in zip((0, before, before + 1), answers):
            equal &= np.array_equal(answer["scores"], expected[step])
        os._exit(0 if equal else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    go.set()
    for thread in threads:
        thread.join()
    inside.clear()
    go.clear()

with hasten.load(sys.argv[1], sessions=1) as fast:
    session, expected, states = fast.session(), [], []
    for _ in range(6):
        states.append(session.states["h"])
        expected.append(session(x)["scores"])
    session.reset()
    session(x), session(x)
    forked(lambda: fast._pool.turn(held), lambda: session(x))  # the step waits for its turn
    forked(reading)
"""


def test_a_sequence_goes_on_in_a_forked_process_though_another_thread_had_it(
    tmp_path: Path,
) -> None:
    model = recurrent.gru(tmp_path)
    states = Sequences((("h", "h_out"),))
    bundle = bundle_of(tmp_path, model, engine=CompiledC(threads=1), sequences=states)
    command = [sys.executable, "-W", "ignore", "-c", FORKED_SESSION, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n0\n"), done.stderr
