"""A process that was forked while other threads were in calls answers as its parent does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from tests.support import recurrent
from tests.support.servers import bundle_of

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
