"""What `hasten.load(bundle)(x)` adds to the bare runtime's call, in turns within one process.

    python benchmarks/overhead.py [BUNDLE ...]

Without a bundle, it makes one per engine of a model that takes some microseconds: of one that takes
milliseconds the noise of a call is larger than what is looked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import hasten
from hasten.testing import models

ROUNDS, CALLS = 100, 200


def bare(session: Any, request: dict[str, Any]) -> Callable[[], Any]:
    """Return the runtime's own call on the session that a bundle has open, nothing around it."""
    session.run(request)  # OpenVINO's request has its input tensor from here on
    if hasattr(session, "_first"):
        return session._first._request.infer  # type: ignore[no-any-return]
    return functools.partial(session._session.run, session._names, request)


def added_us(bundle: Path) -> tuple[float, float, float]:
    """Return the median difference of a round's two medians, with what holds 95% of the rounds."""
    with hasten.load(bundle) as fast:
        (spec,) = fast.manifest.winner.artifact.request
        x = np.zeros(spec.sizes, spec.dtype)
        with fast._pool.session() as session:
            plain = bare(session, {spec.name: x})
        calls = (functools.partial(fast, x), plain)
        differences = []
        for _ in range(ROUNDS):
            ours, runtimes = (_median_ns(call) for call in calls)
            differences.append((ours - runtimes) / 1e3)
    low, middle, high = np.quantile(differences, [0.025, 0.5, 0.975])
    return float(low), float(middle), float(high)


def _median_ns(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return float(np.median(times))


@contextlib.contextmanager
def small_bundles() -> Iterator[list[Path]]:
    """Make a bundle per engine of a linear classifier."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = models.linear_classifier(place)
        x = np.random.default_rng(0).standard_normal((200, 16), np.float32)
        bundles = []
        for engine in ("onnxruntime", "openvino"):
            bundles.append(place / f"{engine}.hasten")
            hasten.optimize(model, x, engines=(engine,), out=bundles[-1])
        yield bundles


def main() -> None:
    os.environ.setdefault("HASTEN_LEDGER", "off")  # each run is timed as a first one
    given = [Path(bundle) for bundle in sys.argv[1:]]
    with contextlib.nullcontext(given) if given else small_bundles() as bundles:
        for bundle in bundles:
            low, middle, high = added_us(bundle)
            print(
                f"{bundle.name}: load(...)(x) adds {middle:.2f} µs "
                f"({low:.2f} to {high:.2f} in 95% of {ROUNDS} rounds)"
            )


if __name__ == "__main__":
    main()
