"""Checks of every bundle of the zoo: right from threads, right when served, an honest floor."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom
from zoo_cases import Arrays

import hasten
from hasten.bundle import read
from hasten.core.target import Target
from hasten.errors import HastenError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models import onnx as onnx_frontend
from hasten.measure import ceilings
from hasten.measure.exactness import EXACT_TOLERANCE, differences
from hasten.measure.roofline import floor
from hasten.measure.work import work

FRESH, THREADS = 20, 8
JUDGED = 200
"""Fresh requests on which a bundle that may lose answers is judged."""
_BY_CHANCE = 1e-4
"""Probability that a bundle which keeps its promise loses more than is allowed here."""
_SAME = 1e-5
"""Largest difference between a bundle's own answers: a batch sums in another order."""
_PATIENCE_S = 120.0
HASTEN = (sys.executable, "-c", "from hasten.cli import main; main()")


def requests_of(samples: Arrays, scalars: Collection[str] = ()) -> list[Arrays]:
    """Return each sample as a request of its own, with a batch of 1; scalars have no axis for it."""
    count = len(next(iter(samples.values())))
    return [
        {
            n: np.asarray(a[i]) if n in scalars else np.asarray(a[i])[None]
            for n, a in samples.items()
        }
        for i in range(count)
    ]


def steps_of(sequence: Arrays) -> list[Arrays]:
    """Return each step of a sequence, `(1, steps, ...)` by input name, as a request of its own."""
    count = next(iter(sequence.values())).shape[1]
    return [{name: array[:, t] for name, array in sequence.items()} for t in range(count)]


def joined(answers: Sequence[Arrays]) -> Arrays:
    """Return the answers to the steps of a sequence as one, `(steps, ...)` by output name."""
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def sample_of(request: Arrays) -> Arrays:
    """Return a request's sample, without the axis for the batch."""
    return {name: array[0] if array.ndim else array for name, array in request.items()}


def same(mine: Arrays, theirs: Arrays, tolerance: float) -> bool:
    """Whether one request's answers are the same, within a tolerance relative to the largest."""
    if mine.keys() != theirs.keys() or any(mine[n].shape != theirs[n].shape for n in theirs):
        return False
    flat = ({name: a.reshape(1, -1) for name, a in one.items()} for one in (mine, theirs))
    return bool((differences(*flat) <= tolerance).all())


def most_lost(count: int, max_drop: float) -> int:
    """Return how many of so many answers a bundle may lose if each is lost with a probability of `max_drop`."""
    return int(binom.isf(_BY_CHANCE, count, max_drop))


def wrong_in_words(
    bundle: Path,
    metric: Metric,
    max_drop: float,
    requests: Sequence[Arrays],
    truth: Sequence[Arrays],
    *,
    stepped: bool = False,
) -> tuple[list[str], list[Arrays]]:
    """Ask a loaded bundle from one thread, and the first `FRESH` requests from eight.

    Args:
        bundle: Folder of the bundle.
        metric: Metric of the case.
        max_drop: Most that its score may fall.
        requests: Fresh requests, each with a batch of 1. `JUDGED` are enough for a bundle that may lose answers.
        truth: The original's answers to them.
        stepped: Whether each is a sequence, to be answered step by step in a session.

    Returns:
        A line for each way in which it answers otherwise; and its answers from one thread.
    """

    def asked(loaded: hasten.bundle.Loaded, request: Arrays) -> Arrays:
        if not stepped:
            return loaded(**request)
        session = loaded.session()
        return joined([session(**step) for step in steps_of(request)])

    exact = read(bundle).status == "exact"
    with hasten.load(bundle) as loaded:
        alone = [asked(loaded, request) for request in requests]
        with ThreadPoolExecutor(THREADS) as pool:
            few = min(FRESH, len(requests))
            turns = [(start + i) % few for start in range(THREADS) for i in range(few)]
            crowd = list(pool.map(lambda i: asked(loaded, requests[i]), turns))
    wrong = []
    if exact:
        off = sum(not same(a, b, EXACT_TOLERANCE) for a, b in zip(alone, truth, strict=True))
        if off:
            wrong.append(f"exact, but {off} of {len(alone)} answers differ from the original's")
    else:
        scores = [float(metric.score(a, b, None).mean()) for a, b in zip(alone, truth, strict=True)]
        lost = sum(1 - score for score in scores)
        allowed = most_lost(len(alone), max_drop)
        if lost > allowed:
            wrong.append(
                f"certified, but {lost:.1f} of {len(alone)} scores are lost, more than {allowed}"
            )
    off = sum(not same(a, alone[i], _SAME) for i, a in zip(turns, crowd, strict=True))
    if off:
        wrong.append(
            f"{off} of {len(crowd)} answers from {THREADS} threads differ from one thread's"
        )
    return wrong, alone


@contextlib.contextmanager
def serving(bundle: Path, log: Path) -> Iterator[str]:
    """Run `hasten serve`; yield its host and port.

    Raises:
        HastenError: the server ended before it was ready; the message is its last line.
    """
    with log.open("w") as said:
        process = subprocess.Popen(
            [*HASTEN, "serve", f"m={bundle}", "--http", "0"],
            stdout=said,
            stderr=said,
            env=environment(log.parent / "state"),
        )
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while "\nready" not in f"\n{log.read_text()}":
            if process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text().strip().splitlines()
                raise HastenError(
                    f"the server isn't ready: {lines[-1] if lines else 'it said nothing'}"
                )
            time.sleep(0.1)
        port = re.search(r"listening on http://.*:(\d+)", log.read_text())
        if port is None:
            raise HastenError(f"the server names no port: {log.read_text()!r:.200}")
        yield f"127.0.0.1:{port[1]}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE_S / 4)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def served_wrong(
    bundle: Path,
    log: Path,
    requests: Sequence[Arrays],
    truth: Sequence[Arrays],
    *,
    stepped: bool = False,
) -> list[str]:
    """Ask a served bundle by tritonclient, one request after another and eight at once.

    Args:
        bundle: Folder of the bundle.
        log: File for what the server says.
        requests: Requests with a batch of 1.
        truth: The loaded bundle's answers to them.
        stepped: Whether each is a sequence, whose states the server keeps.

    Returns:
        A line for each way in which it answers otherwise than the loaded bundle.
    """
    from tritonclient.http import InferenceServerClient, InferInput
    from tritonclient.utils import np_to_triton_dtype

    ids = itertools.count(1)

    def asked(client: InferenceServerClient, request: Arrays) -> Arrays:
        if not stepped:
            return answered(client, request)
        own, steps = next(ids), steps_of(request)
        return joined(
            [
                answered(
                    client,
                    step,
                    sequence_id=own,
                    sequence_start=step is steps[0],
                    sequence_end=step is steps[-1],
                )
                for step in steps
            ]
        )

    def answered(client: InferenceServerClient, request: Arrays, **sequence: Any) -> Arrays:
        given = []
        for name, array in request.items():
            given.append(InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            given[-1].set_data_from_numpy(np.array(array, order="C"))
        found = client.infer("m", given, **sequence)
        return {name: found.as_numpy(name) for name in truth[0]}

    with serving(bundle, log) as host:
        with InferenceServerClient(host) as client:
            alone = [asked(client, request) for request in requests]

        def crowded(request: Arrays) -> Arrays:
            with InferenceServerClient(host) as own:
                return asked(own, request)

        with ThreadPoolExecutor(THREADS) as pool:
            crowd = list(pool.map(crowded, requests))
    wrong = []
    for who, answers in (("one client", alone), (f"{THREADS} clients", crowd)):
        off = sum(not same(a, b, EXACT_TOLERANCE) for a, b in zip(answers, truth, strict=True))
        if off:
            wrong.append(f"served to {who}: {off} of {len(answers)} answers differ from load's")
    if "Traceback" in log.read_text():
        wrong.append(f"the server printed a traceback: {log}")
    return wrong


@dataclass(frozen=True)
class Counted:
    """The least work that hasten counts in a model.

    Attributes:
        multiplications: Number of multiplications, each with its addition.
        uncounted: Layers whose work it doesn't know, for which it says no floor.
        floor_ns: Least time of one request on this machine; None where it isn't measured.
        wrong: Lines about what can't be.
    """

    multiplications: int
    uncounted: int
    floor_ns: float | None
    wrong: tuple[str, ...]


def counted(
    file: Path, request: Arrays, by_hand: int, latency_ns: float | None, folder: Path | None
) -> Counted:
    """Compare the work that hasten counts with an honest count, and the floor with a latency.

    Args:
        file: The original's ONNX file.
        request: One request, with a batch of 1.
        by_hand: Multiplications by an honest count; 0 where there is none.
        latency_ns: Median latency of what ships, on all threads; None where it wasn't measured.
        folder: Folder that keeps the machine's ceilings; None to leave the floor's time out.
    """
    model = onnx_frontend.load(file).settled_by(sample_of(request))
    layers = work(model, request)
    found = sum(layer.operations for layer in layers) // 2
    unknown = sum(not layer.counted for layer in layers)
    wrong = []
    if not unknown and found < by_hand / 10:
        wrong.append(f"{found:,} multiplications counted of {by_hand:,} by hand")
    if by_hand and found > 1.1 * by_hand:
        wrong.append(f"{found:,} multiplications counted, more than the {by_hand:,} by hand")
    least_ns = None
    if folder is not None and layers and not unknown:
        target = Target.host()
        least_ns = floor(layers, ceilings.measure(target, folder)).floor_ns
        if latency_ns is not None and latency_ns < least_ns:
            wrong.append(
                f"the floor of {least_ns:,.0f} ns is above the latency, {latency_ns:,.0f} ns"
            )
    return Counted(found, unknown, least_ns, tuple(wrong))


def environment(state: Path) -> dict[str, str]:
    """Return the environment of a command: this hasten, and a ledger of looks of its own.

    Each way out of torch is judged on the same samples, which the user's own ledger would count.
    """
    source = Path(hasten.__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "XDG_STATE_HOME": str(state)}
