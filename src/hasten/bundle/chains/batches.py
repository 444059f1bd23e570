"""Batch sizes in which a model of a chain answers about several crops at once, as it does about one."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence

import numpy as np

from hasten.bundle.batch_mates import (
    MOST_BYTES,
    made_up,
    mates,
    share_batch_axis,
    stacked,
    unlike_alone,
)
from hasten.bundle.covered import listed, split
from hasten.bundle.loaded import Loaded
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError

SIZES = (2, 4, 8, 16, 32)
"""Batch sizes that are tried beside 1."""
_BUDGET_NS = 2_000_000_000
"""Time after which no larger batch is tried."""
_RUNS = 3


def batch_sizes(loaded: Loaded, most: int | None) -> tuple[tuple[int, ...], str]:
    """Return the batch sizes to use, and a note for people; "" where there is none.

    A size is used if the model takes it, a sample's answer in such a batch is that of the sample
    alone, and a batch takes less time per sample than smaller ones. A certified bundle keeps to the
    sizes that its certificate covers, unless it was loaded with `any_batch`.

    Args:
        loaded: The open bundle.
        most: Largest size to try; None for the largest that its certificate allows.
    """
    largest, within = SIZES[-1] if most is None else most, loaded.keeps_to
    sizes = [1]
    tried = [n for n in SIZES if n <= largest and _takes(loaded, n) and n in (within or SIZES)]
    if not tried:
        return (1,), ""
    kept = [{n: a[:1] for n, a in request.items()} for request in loaded.requests]
    others = mates(kept, loaded.request, loaded.numbers)
    start_ns = time.perf_counter_ns()
    try:
        rng = np.random.default_rng(0)
        lone = kept[0] if kept else made_up(loaded.request, 1, rng, numbers=loaded.numbers)
        each_bytes = sum(array.nbytes for array in lone.values())
        alone = loaded.run(lone)
        best_ns = _least_ns(loaded, lone)
        for size in tried:
            if size * each_bytes > MOST_BYTES or time.perf_counter_ns() - start_ns > _BUDGET_NS:
                break
            batch = stacked([lone, *itertools.islice(others, size - 1)])
            again = functools.partial(loaded.run, lone)
            unlike = unlike_alone(loaded.run(batch), alone, size, again)
            if unlike:
                return (1,), f"one sample at a time: {unlike}"
            per_row_ns = _least_ns(loaded, batch) / size
            if per_row_ns < best_ns:
                sizes.append(size)
                best_ns = per_row_ns
    except CandidateError as error:
        return (1,), f"one sample at a time: a batch fails: {error}"
    note = ""
    covered = loaded.certified_batches
    if covered is not None and not set(sizes) <= set(covered):
        note = (
            f"batches of up to {sizes[-1]} are used, but only these batch sizes are certified: "
            f"{listed(covered)}"
        )
    return tuple(sizes), note


def run_rows(
    loaded: Loaded, requests: Sequence[dict[str, Array]], sizes: Sequence[int]
) -> list[Tensors]:
    """Answer requests of one row each, in batches of the sizes; each answer has one row.

    Raises:
        CandidateError: the engine failed, or the bundle is closed.
    """
    answers: list[Tensors] = []
    for size in split(len(requests), sizes):
        part = requests[len(answers) : len(answers) + size]
        if size == 1:
            answers.append(loaded.run(part[0]))
            continue
        outputs = loaded.run(stacked(part))
        answers += [{n: a[row : row + 1] for n, a in outputs.items()} for row in range(size)]
    return answers


def _takes(loaded: Loaded, size: int) -> bool:
    """Whether a model's inputs and outputs share an open batch axis that takes a size."""
    sizes = loaded.batch_sizes
    if loaded.manifest.varying:
        return False
    return share_batch_axis(loaded.inputs, loaded.outputs) and (sizes is None or size in sizes)


def _least_ns(loaded: Loaded, request: Tensors) -> float:
    """Return the least time of some runs."""
    times = []
    for _ in range(_RUNS):
        start_ns = time.perf_counter_ns()
        loaded.run(request)
        times.append(time.perf_counter_ns() - start_ns)
    return min(times)
