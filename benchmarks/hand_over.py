"""What it adds to a request that a session has a thread of its own, in turns within one process.

    python benchmarks/hand_over.py

The session is that of ONNX Runtime's engine for CUDA, over this host's memory, with a model that takes some
microseconds. It is asked directly and through its thread, and `concurrent.futures` with one thread stands
beside. Prints the median difference of a round's two medians, with what holds 95% of the rounds.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.target import Target
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.own_thread import in_own_thread
from hasten.inputs.models.onnx import load
from hasten.testing import models

ROUNDS, CALLS = 100, 200


def median_ns(call: Callable[[], Any]) -> float:
    """Return the median latency of some calls, in nanoseconds."""
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return float(np.median(times))


def main() -> None:
    target, engine = Target.host().with_threads(1), OnnxRuntimeCuda()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        model = load(models.linear_classifier(Path(folder)))
        (Path(folder) / "built").mkdir()
        artifact = engine.build(model, target, Path(folder) / "built")
        request = {
            spec.name: np.zeros([1 if isinstance(n, str) else n for n in spec.shape], spec.dtype)
            for spec in artifact.inputs
        }
        with (
            engine._opened(artifact, target) as direct,
            in_own_thread(engine._opened(artifact, target), "its own") as handed,
        ):
            ask = functools.partial(direct.run, request)
            ways: dict[str, Callable[[], Any]] = {
                "its own thread": functools.partial(handed.run, request),
                "concurrent.futures": lambda: pool.submit(ask).result(),
            }
            differences: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                alone_ns = median_ns(ask)
                for name, way in ways.items():
                    differences[name].append((median_ns(way) - alone_ns) / 1e3)
    for name, each in differences.items():
        low, middle, high = np.quantile(each, [0.025, 0.5, 0.975])
        print(f"{name}: {middle:.1f} us more ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
