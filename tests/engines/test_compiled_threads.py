"""Several threads in a call of compiled C: same answers, whatever becomes of the threads."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hasten.core.c_compiler import Compiler
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Tensors
from hasten.engines.base import Artifact, Engine
from hasten.engines.compiled import source
from hasten.engines.compiled.engine import CompiledC, CompiledSession
from hasten.engines.compiled.library import Team
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import Source, write
from hasten.engines.compiled.writer import text_of
from hasten.errors import CandidateError, NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import assert_one_line, request_for


def perceptron(folder: Path) -> Path:
    """Write layers whose sums make whole tiles, a rest, and too few for a vector."""
    text = """
        perceptron (float[batch, 40] x) => (float[batch, 3] y) {
            h1 = Gemm(x, w1, b1)
            a1 = Tanh(h1)
            h2 = Gemm(a1, w2, b2)
            a2 = Sigmoid(h2)
            y = Gemm(a2, w3, b3)
        }"""
    weights = {
        "w1": (40, 333),
        "b1": (333,),
        "w2": (333, 65),
        "b2": (65,),
        "w3": (65, 3),
        "b3": (3,),
    }
    return models.write(folder / "perceptron.onnx", text, weights)


def products(folder: Path) -> Path:
    """Write products of five pairs of matrices, and of one pair for all, by a softmax between."""
    text = """
        products (float[batch, 5, 15, 9] x) => (float[batch, 5, 15, 3] y) {
            turned = Transpose <perm = [0, 1, 3, 2]> (x)
            pairs = MatMul(x, turned)
            weights = Softmax <axis = -1> (pairs)
            mixed = MatMul(weights, x)
            y = MatMul(mixed, w)
        }"""
    return models.write(folder / "products.onnx", text, {"w": (9, 3)})


def odd_shapes(folder: Path) -> Path:
    """Write convolutions and reductions, none of whose sizes is a multiple of another's."""
    text = """
        odd_shapes (float[batch, 3, 37, 29] x) => (float[batch, 13] y) {
            c1 = Conv <kernel_shape = [5, 3], pads = [2, 0, 1, 1], strides = [2, 1]> (x, w1, b1)
            s1 = HardSwish(c1)
            c2 = Conv <kernel_shape = [3, 3], dilations = [2, 1], group = 7> (s1, w2)
            p2 = MaxPool <kernel_shape = [3, 2], strides = [1, 2]> (c2)
            c3 = Conv <kernel_shape = [1, 1]> (p2, w3, b3)
            e3 = Exp(c3)
            y = ReduceMean <axes = [2, 3], keepdims = 0> (e3)
        }"""
    weights = {"w1": (7, 3, 5, 3), "b1": (7,), "w2": (7, 1, 3, 3), "w3": (13, 7, 1, 1), "b3": (13,)}
    return models.write(folder / "odd_shapes.onnx", text, weights)


MODELS: dict[str, Callable[[Path], Path]] = {
    "convolutions": models.small_cnn,
    "layers": perceptron,
    "products of matrices": products,
    "odd shapes": odd_shapes,
}


@pytest.fixture(autouse=True, scope="module")
def own_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is compiled from other files' tests; threads don't change what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads share all that can be shared, with Python's lock released, however small it is."""
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    monkeypatch.setattr(source, "_LONG_WORK", 0)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return built(models.small_cnn(tmp_path), tmp_path)


def built(path: Path, folder: Path, threads: int = 1) -> Artifact:
    return CompiledC(threads=threads).build(load(path), Target.host(), folder)


class Opened:
    """Session on some threads, with the threads of this process that it started.

    Args:
        artifact: Artifact to open.
        threads: Number of threads.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._before = tasks()
        engine, target = CompiledC(threads=threads), Target.host().with_threads(threads)
        self._opening = engine.open(artifact, target)
        session = self._opening.__enter__()
        assert isinstance(session, CompiledSession)
        self.session = session

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._opening.__exit__(None, None, None)

    @property
    def started(self) -> set[Path]:
        return tasks() - self._before


def tasks() -> set[Path]:
    """Return the threads of this process."""
    return set(Path("/proc/self/task").iterdir())


def in_the_end(holds: Callable[[], object]) -> bool:
    """Whether something holds before long: the system ends and stops threads a little later."""
    for _ in range(1000):
        if holds():
            return True
        time.sleep(0.005)
    return False


def same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_the_same_bits_on_any_number_of_threads(model: str, tmp_path: Path) -> None:
    path = MODELS[model](tmp_path)
    artifact = built(path, tmp_path)
    requests = [request_for(artifact.inputs, batch=batch, seed=batch) for batch in (1, 7, 29)]
    with Opened(artifact, 1) as alone:
        wanted = [alone.session.run(request) for request in requests]
        assert not alone.started
    reference = onnxruntime.InferenceSession(path)
    for request, answer in zip(requests, wanted, strict=True):
        for array, other in zip(answer.values(), reference.run(None, request), strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)
    for threads in (2, 3):
        with Opened(artifact, threads) as several:
            for _ in range(20):
                for request, answer in zip(requests, wanted, strict=True):
                    assert same(answer, several.session.run(request))
            assert len(several.started) == threads - 1


_STAGES = """
struct team;
struct call { struct team *team; long rows; long calls; u8 *done; long *wrong; };
static long here;
%s
enum { STEPS = 37 };
static void walk(const struct call *c, struct member *me) {
  __atomic_add_fetch(&here, 1, __ATOMIC_SEQ_CST); /* all threads take part in each call */
  while (__atomic_load_n(&here, __ATOMIC_SEQ_CST) < c->calls * me->threads) sched_yield();
  for (long r = 0; r < c->rows; r++) {
    u8 *done = c->done + r * (STEPS + 1);
    const long steps = 1 + r %% STEPS, earlier = r ? 1 + (r - 1) %% STEPS : -1;
    const int late = me->part && (r == c->rows - 1 || r %% 60 == 0) ? 20000 : 0;
    enter(me, steps);
    for (long s; (s = claim(me)) >= 0; finish(me)) {
      const long first = steps * s / me->shares, last = steps * (s + 1) / me->shares;
      for (long i = 0; i <= earlier; i++) *c->wrong += done[-1 - i] != (i > 0 || r %% 3 == 1);
      for (long i = first; i < last; i++) {
        for (volatile int wait = 0; wait < (r * 7 + i * 13) %% 50 + late; wait++);
        done[STEPS - steps + i]++;
      }
    }
    if (r %% 3 == 0 && alone(me)) {
      for (long i = STEPS - steps; i < STEPS; i++) *c->wrong += done[i] != 1;
      done[STEPS]++;
      finish_alone(me);
    }
  }
}
__attribute__((visibility("default"))) void answer(
    struct team *team, long rows, long calls, u8 *done, long *wrong) {
  if (calls == 1) here = 0;
  const struct call call = {team, rows, calls, done, wrong};
  run(&call);
}
"""
"""Stages of 1 to 37 steps, and some for the caller, each of which looks at the one before."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> ctypes.PyDLL:
    """Compile the threads' C with a plan that counts its steps."""
    text = text_of("math.c") + _STAGES % text_of("threads.c")
    path = tmp_path_factory.mktemp("stages") / "stages.so"
    path.write_bytes(Compiler.find().compile(text).content)
    return ctypes.PyDLL(str(path))


@pytest.mark.parametrize("threads", [1, 2, 5, 32])
def test_every_step_is_done_once_and_after_all_of_the_stage_before(
    threads: int, stages: ctypes.PyDLL
) -> None:
    team = Team(stages, threads)
    wrong = ctypes.c_long(0)
    address = ctypes.c_void_p(team.address)
    for call in range(20):
        done = np.zeros((200, 38), np.uint8)
        stages.answer(
            address,
            ctypes.c_long(200),
            ctypes.c_long(call + 1),
            done.ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(wrong),
        )
        assert done.max() == 1
        assert done.sum(axis=1).tolist() == [1 + row % 37 + (row % 3 == 0) for row in range(200)]
    assert not wrong.value


@pytest.mark.usefixtures("eager")
def test_idle_threads_sleep(artifact: Artifact) -> None:
    with Opened(artifact, 3) as opened:
        opened.session.run(request_for(artifact.inputs))
        workers = opened.started
        assert len(workers) == 2
        assert in_the_end(lambda: all(_facts(one)[0] == "S" for one in workers))
        before = [_facts(one) for one in workers]
        time.sleep(0.1)
        assert [_facts(one) for one in workers] == before


def _facts(task: Path) -> tuple[str, int]:
    """Return a thread's state, and its processor time in ticks of the system's clock."""
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


@pytest.mark.usefixtures("eager")
def test_signals_are_left_to_the_programs_own_threads(artifact: Artifact) -> None:
    with Opened(artifact, 2) as opened:
        opened.session.run(request_for(artifact.inputs))
        (worker,) = opened.started
        assert in_the_end(lambda: _facts(worker)[0] == "S")  # it has begun
        status = (worker / "status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert blocked >> (signal.SIGINT - 1) & 1


@pytest.mark.usefixtures("eager")
def test_threads_end_with_their_session_though_a_bound_call_is_kept(artifact: Artifact) -> None:
    opened = Opened(artifact, 3)
    request = request_for(artifact.inputs)
    call = opened.session.bind(request, opened.session.run(request))
    call()
    assert len(opened.started) == 2
    opened.close()
    assert in_the_end(lambda: not opened.started)
    with pytest.raises(CandidateError, match="closed"):
        call()
    assert not opened.started


@pytest.mark.usefixtures("eager")
def test_threads_end_with_the_last_reference_to_them(artifact: Artifact) -> None:
    opened = Opened(artifact, 2)
    request = request_for(artifact.inputs)
    opened.close()
    opened.session.run(request)
    assert len(opened.started) == 1
    del opened.session, opened._opening
    gc.collect()
    assert in_the_end(lambda: not opened.started)


@pytest.mark.usefixtures("eager")
def test_many_python_threads_call_at_once(artifact: Artifact) -> None:
    wrong: list[int] = []
    with Opened(artifact, 2) as one, Opened(artifact, 3) as other:
        calls = []
        for seed in range(6):
            request = request_for(artifact.inputs, batch=1 + seed, seed=seed)
            wanted = one.session.run(request)
            taken = {name: np.zeros_like(array) for name, array in wanted.items()}
            session = (one if seed % 2 else other).session
            calls.append((session.bind(request, taken), wanted, taken))

        def ask(number: int) -> None:
            call, wanted, taken = calls[number]
            for _ in range(100):
                for array in taken.values():
                    array[...] = np.nan
                call()
                if not same(wanted, taken):
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


_ANOTHER_PROCESS = """
import os, pickle, resource, sys
from pathlib import Path
import numpy as np
from hasten.core.target import Target
from hasten.engines.compiled import source
from hasten.engines.compiled.engine import CompiledC
source.LEAST_SHARED = source.LEAST_TOGETHER = 0
task, artifact, request, wanted = pickle.load(sys.stdin.buffer)
tasks = lambda: len(list(Path("/proc/self/task").iterdir()))
with CompiledC(threads=3).open(artifact, Target.host().with_threads(3)) as session:
    def right():
        found = session.run(request)
        return all(np.array_equal(found[name], wanted[name]) for name in wanted)
    def fork():
        child = os.fork()
        if child == 0:
            before = tasks()
            os._exit(right() and fork() if len(sys.argv) > 1 else right() and tasks() == before + 2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if task == "fork":
        print([right(), fork(), right(), fork()])
    else:
        room = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (room + task, limit))
        before = tasks()
        print([right(), right(), tasks() - before])
"""


def another_process(task: str | int, artifact: Artifact) -> str:
    """Run a task on three threads in another process, which finds what this one compiled.

    Args:
        task: "fork", or the bytes of address space that stay.
        artifact: Artifact to open.
    """
    import pickle
    import tempfile

    request = request_for(artifact.inputs, batch=3)
    with Opened(artifact, 3) as opened:
        wanted = opened.session.run(request)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ANOTHER_PROCESS],
        input=pickle.dumps((task, artifact, request, wanted)),
        env={**os.environ, "TMPDIR": tempfile.gettempdir(), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20)),
    )
    assert not ended.returncode, ended.stderr.decode()
    return ended.stdout.decode().strip()


@pytest.mark.usefixtures("eager")
def test_a_process_that_is_forked_beside_threads_starts_its_own(artifact: Artifact) -> None:
    assert another_process("fork", artifact) == "[True, 1, True, 1]"


def test_hashing_a_text_holds_no_lock_for_which_a_forked_process_would_wait() -> None:
    begun, on = threading.Event(), threading.Event()

    class Long(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            begun.set()
            on.wait()
            return super().__iter__()

    tables, found = np.zeros(0, np.uint8), []
    long = threading.Thread(target=lambda: Source(Long("text"), tables, 0).digest)
    short = threading.Thread(
        target=lambda: found.append(Source(("text",), tables, 0).digest), daemon=True
    )
    long.start()
    begun.wait()
    short.start()
    short.join(5)
    hashed = len(found)
    on.set()
    long.join()
    assert hashed == 1


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("room", "granted"), [(6 << 20, 0), (14 << 20, 1)])
def test_a_call_runs_on_the_threads_that_the_system_grants(
    room: int, granted: int, artifact: Artifact
) -> None:
    assert another_process(room, artifact) == f"[True, True, {granted}]"


@pytest.mark.parametrize("least", ["LEAST_SHARED", "LEAST_TOGETHER"])
def test_a_small_plan_is_written_as_for_one_thread_and_is_no_second_candidate(
    least: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, least, 0)
    artifact = built(perceptron(tmp_path), tmp_path)
    plan, weights = Plan.read(artifact.path), artifact.files[0].read_bytes()
    one, many = (write(plan, weights, Target.host(), threads) for threads in (1, 8))
    assert (one.text, one.arena_bytes, one.threads) == (many.text, many.arena_bytes, many.threads)
    assert np.array_equal(one.tables, many.tables)
    assert "__atomic" not in one.text
    with pytest.raises(NotCovered, match="too little to calculate for 8 threads") as caught:
        built(perceptron(tmp_path), tmp_path, threads=8)
    assert_one_line(caught.value)


@pytest.mark.usefixtures("eager")
def test_a_large_plan_is_the_same_text_for_all_numbers_of_threads(tmp_path: Path) -> None:
    artifact = built(perceptron(tmp_path), tmp_path)
    plan, weights = Plan.read(artifact.path), artifact.files[0].read_bytes()
    one, two, many = (write(plan, weights, Target.host(), threads) for threads in (1, 2, 8))
    assert one.text == two.text == many.text
    assert "claim(me)" in one.text
    assert (one.threads, two.threads, many.threads) == (1, 2, 8)


def test_variants_are_one_thread_and_all_and_the_rest_follows_the_target() -> None:
    host = Target.host()
    one, all_of_them = CompiledC.variants(host.with_threads(4))
    assert (one.threads, all_of_them.threads) == (1, 4)
    assert [*CompiledC.variants(host.with_threads(1))] == [one]
    assert [*one.tunings(host.with_threads(4))] == [all_of_them]
    assert [*all_of_them.tunings(host.with_threads(4))] == [one]
    assert all_of_them.within(2) == replace(one, threads=2)
    assert all_of_them.words() == "compiled C, 4 threads"
    record = to_record(one)
    del record["threads"]  # as bundles have it that were made before
    assert from_record(Engine, record) == one


@pytest.mark.usefixtures("eager")
def test_a_session_has_no_more_threads_than_its_target(artifact: Artifact) -> None:
    with CompiledC(threads=4).open(artifact, Target.host().with_threads(1)) as session:
        assert session.properties()["threads"] == "1"
