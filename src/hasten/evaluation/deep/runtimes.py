"""Checks of the runtimes on a device: right answers, sessions in threads, and a race against itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cuda.capability import known_part
from hasten.engines.cuda.gauge import Gauge, gauge_of
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.runtime import cuda_runtime
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.parts import no_rtx
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, InputError
from hasten.evaluation.deep.finding import Failing, Found, NotDone, Place
from hasten.evaluation.deep.memory import aborting, opened
from hasten.evaluation.deep.network import answer, as_model, requests
from hasten.evaluation.deep.same import RaceLengths, Warmed, against_itself
from hasten.measure.closed_loop import all_of

ENGINES: tuple[Engine, ...] = (
    TensorrtRtx(),
    TensorrtRtx(tf32=True),
    Tensorrt(),
    OnnxRuntimeCuda(),
    OnnxRuntimeCuda(tf32=True),
    OnnxRuntimeCuda(cuda_graph=True),
    OnnxRuntimeCuda("tensorrt"),
    TorchCuda("eager"),
    TorchCuda("graph"),
    TorchCuda("graph", "f16"),
    TorchCuda(),
)
IN_THREADS: tuple[Engine, ...] = (
    TensorrtRtx(),
    Tensorrt(),
    OnnxRuntimeCuda(cuda_graph=True),
    TorchCuda("graph"),
    TorchCuda(),
)
"""Engines with captured graphs, which may belong to the thread that captured them."""
RACED: tuple[Engine, ...] = (
    TensorrtRtx(),
    Tensorrt(),
    TorchCuda("graph"),
    OnnxRuntimeCuda(cuda_graph=True),
)
"""Engines of which the first that is installed is raced against itself."""
_EXACT, _ROUNDED = 2e-5, 2e-2
"""Largest distance from float64, as a share of the answers' root mean square: with products of float32, and
with operands of 10 bits."""
_COUNT = 8
_AT_ONCE = 50
_BOTH_OPEN_S = 60.0
"""Longest time that a thread waits until the other one's session answers, in seconds."""
_AGREE = 0.01
"""Largest distance from 1 of a session's latency divided by its own."""


def answers(engine: Engine, place: Place) -> Found:
    """Compare a runtime's answers with float64's on this host."""
    with session_of(engine, place) as session:
        asked = requests(_COUNT)
        off = max(_off(_only(session.run(request)), answer(request)) for request in asked)
        graph = session.properties().get("graph", "off")
    _check_bound(engine, off)
    return Found(f"{_COUNT} answers, off by {off:.1e} of float64's size; graph: {graph}")


def threads(engine: Engine, place: Place) -> Found:
    """Answer in another thread than the one that opened, and in two sessions of two threads at once."""
    asked = requests(_COUNT)
    right = [answer(request) for request in asked]
    with building(engine, place) as (artifact, target):
        with engine.open(artifact, target) as session:
            alone = [_only(session.run(request)) for request in asked]
            with ThreadPoolExecutor(1) as other:
                there = other.submit(lambda: [_only(session.run(one)) for one in asked]).result()
            _check_same(there, alone, "a session that one thread opened and another runs")
        barrier = threading.Barrier(2)

        def one(number: int) -> None:
            with aborting(barrier), engine.open(artifact, target) as session:
                own = [_only(session.run(request)) for request in asked]
                barrier.wait(_BOTH_OPEN_S)
                for turn in range(_AT_ONCE):
                    at = (turn + number) % _COUNT
                    got = _only(session.run(asked[at]))
                    _check_same([got], [own[at]], "a session next to another session's thread")
                _check_bound(engine, max(map(_off, own, right)))

        all_of(one, 2)
    return Found(
        f"opened in one thread and run in another; two sessions in two threads, {_AT_ONCE} answers each"
    )


def race(place: Place, pace: RaceLengths = RaceLengths()) -> Found:  # noqa: B008 - a value
    """Race a session against itself after three warm-ups of different lengths."""
    whys = []
    with opened(place):
        gauge = (
            gauge_of(cuda_runtime()) if place == "cuda" else Gauge(None, "this host has no NVML")
        )
        for engine in RACED:
            try:
                with session_of(engine, place) as session:
                    found = against_itself(session.run, requests(_COUNT), gauge.reading, pace)
            except (CandidateError, InputError, NotDone) as error:
                whys.append(f"{engine.words()}: {error}")
                continue
            return _raced(engine, found)
    raise NotDone(f"no runtime to race: {'; '.join(whys)}")


def _raced(engine: Engine, found: list[Warmed]) -> Found:
    """Judge the race by its longest warm-up, and tell all."""
    last, details = found[-1].ratio, tuple(map(str, found))
    said = f"{engine.words()} against itself: {last.estimate:.4f} after {found[-1].warmup_s:g} s"
    if abs(last.estimate - 1) > _AGREE:
        raise Failing(f"{said}, more than {_AGREE:.0%} apart", details)
    return Found(said, details)


@contextmanager
def session_of(engine: Engine, place: Place) -> Iterator[Session]:
    """Build the small network on an engine and open it."""
    with building(engine, place) as (artifact, target), engine.open(artifact, target) as session:
        yield session


@contextmanager
def building(engine: Engine, place: Place) -> Iterator[tuple[Artifact, Target]]:
    """Build the small network on an engine.

    Raises:
        InputError: the engine isn't installed, or not for CUDA.
        NotDone: there is no GPU here, or the engine isn't for this one.
        CandidateError: the engine can't build it.
    """
    with opened(place):
        target = find_target("cuda" if place == "cuda" else "cuda:sm80").with_threads(1)
        if place == "cuda":
            target = replace(target, kind="attached", device="cuda")  # wherever its device node is
            check_wanted(engine, target)
        with TemporaryDirectory() as folder:
            (made := Path(folder, "made")).mkdir()
            model = as_model(Path(folder), program=isinstance(engine, TorchCuda))
            yield engine.build(model, target, made), target


def check_wanted(engine: Engine, target: Target) -> None:
    """Check that an engine is installed with all that it loads, and is for this GPU at all.

    Raises:
        InputError: it isn't installed, or not for CUDA.
        NotDone: it isn't for this GPU.
    """
    if isinstance(engine, TensorrtRtx) and (why := no_rtx(known_part(target), target)):
        raise NotDone(why)
    engine.version()
    engine.check_tools(target)
    if isinstance(engine, OnnxRuntimeCuda) and engine.provider == "tensorrt":
        Tensorrt.version()  # whose library the provider loads; its bindings load it first


def _only(answers: Tensors) -> Array:
    (array,) = answers.values()
    return array


def _off(got: Array, right: Array) -> float:
    """Return the largest distance of an answer, as a share of the right one's root mean square."""
    return float(np.abs(got - right).max() / np.sqrt(np.mean(right**2)))


def _check_bound(engine: Engine, off: float) -> None:
    bound = _EXACT if engine.exact else _ROUNDED
    if not off <= bound:  # which NaN isn't, either
        raise CandidateError(
            f"answers are off by {off:.1e} of float64's size; {engine.words()} may be off by {bound:.0e}"
        )


def _check_same(got: list[Array], right: list[Array], what: str) -> None:
    if wrong := sum(not np.array_equal(*pair) for pair in zip(got, right, strict=True)):
        raise CandidateError(f"{what} gives other answers than alone: {wrong} of {len(got)}")
