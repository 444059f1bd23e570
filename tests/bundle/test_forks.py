"""A process that was forked while other threads were in calls answers as its parent does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.servers import bundle_of

from hasten.engines.compiled.engine import CompiledC
from hasten.testing import models

FORKED = """
import asyncio, os, signal, sys, threading, time
import numpy as np
import hasten
from hasten.engines import pool as pools

x = np.ones((1, 16), np.float32)
large = np.ones((200_000, 16), np.float32)
inside, go = threading.Event(), threading.Event()

def held():
    inside.set()
    go.wait()

def held_up():
    with pools._OPENING:
        fast._pool.turn(held)

with hasten.load(sys.argv[1], sessions=1) as fast:
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
    bundle = bundle_of(tmp_path, models.linear_classifier(tmp_path), engine=CompiledC())
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
