import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.support.faults import SLOW_NS, Fault, Faulty, spin

from hasten.core.target import Target
from hasten.engines.base import Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for

PROGRAM = """
import resource, sys
from pathlib import Path
from hasten.engines.null import Null
from hasten.inputs.models.onnx import load
from hasten.core.target import Target
from hasten.testing import models
from hasten.testing.engine_tests import request_for
from tests.support.faults import Faulty
folder, fault, on_run = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
engine, target = Faulty(Null(), fault, on_run=on_run), Target.host()
(folder / "built").mkdir()
model = load(models.linear_classifier(folder))
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**28, mapped + 2**28))
with engine.open(engine.build(model, target, folder / "built"), target) as session:
    print("open", flush=True)
    session.run(request_for(model.inputs))
    print("once", flush=True)
    session.run(request_for(model.inputs))
"""


class TestFaultyWithoutAFault(EngineTests):
    engine = Faulty(OnnxRuntime())

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert [engine.fault for engine in Faulty.variants(target)] == ["none"]


@pytest.fixture
def stack() -> ExitStack:  # type: ignore[misc]
    with ExitStack() as stack:
        yield stack


def opened(fault: Fault, folder: Path, stack: ExitStack) -> Session:
    engine, target = Faulty(OnnxRuntime(), fault), Target.host()
    (folder / "built").mkdir()
    artifact = engine.build(load(models.two_inputs(folder)), target, folder / "built")
    return stack.enter_context(engine.open(artifact, target))


def words(folder: Path, fault: Fault, on_run: int) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(folder), fault, str(on_run)]


def run(folder: Path, fault: Fault, on_run: int) -> tuple[str, int]:
    done = subprocess.run(words(folder, fault, on_run), capture_output=True, text=True, timeout=500)
    return done.stdout, done.returncode


@pytest.mark.parametrize(("on_run", "printed"), [(0, ""), (1, "open\n"), (2, "open\nonce\n")])
def test_it_kills_its_process_when_told(tmp_path: Path, on_run: int, printed: str) -> None:
    assert run(tmp_path, "kill", on_run) == (printed, -signal.SIGKILL)


def test_it_takes_memory_until_there_is_none(tmp_path: Path) -> None:
    printed, code = run(tmp_path, "allocate", 2)
    assert (printed, code) == ("open\nonce\n", 1)


def test_it_hangs_for_ever(tmp_path: Path) -> None:
    command = words(tmp_path, "hang", 2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["open\n", "once\n"]
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
        finally:
            process.kill()


def test_its_wrong_answers_are_the_first_ones_negative(tmp_path: Path, stack: ExitStack) -> None:
    session = opened("wrong", tmp_path, stack)
    first = request_for(session.inputs, seed=1)
    wrong = session.run(first)
    again = session.run(request_for(session.inputs, seed=2))
    np.testing.assert_array_equal(wrong["same_ids"], -first["ids"])
    np.testing.assert_array_equal(again["score"], wrong["score"])
    assert wrong["score"].any()
    assert session.run(request_for(session.inputs, batch=3))["score"].shape == (3, 8)


def test_it_answers_nan(tmp_path: Path, stack: ExitStack) -> None:
    session = opened("nan", tmp_path, stack)
    outputs = session.run(request_for(session.inputs))
    assert np.isnan(outputs["score"]).sum() == 1


def test_it_cannot_build_when_told(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(CandidateError) as caught:
        opened("build", tmp_path, stack)
    assert str(caught.value) == "the faulty engine can't build, as it was told"


def test_it_is_slow_when_told(tmp_path: Path, stack: ExitStack) -> None:
    session = opened("slow", tmp_path, stack)
    start = time.perf_counter_ns()
    session.run(request_for(session.inputs))
    assert time.perf_counter_ns() - start >= SLOW_NS


def test_spinning_takes_no_less_than_asked() -> None:
    start = time.perf_counter_ns()
    spin(2_000_000)
    assert time.perf_counter_ns() - start >= 2_000_000


def test_bad_answers_are_not_called_exact() -> None:
    assert Faulty(OnnxRuntime(), "slow").exact
    assert not Faulty(OnnxRuntime(), "wrong").exact
    assert not Faulty(OnnxRuntime(), "nan").exact
