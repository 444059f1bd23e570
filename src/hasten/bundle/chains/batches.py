"""Batch sizes in which a model of a chain answers about several crops at once, as it does about one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hasten.bundle.loaded import Loaded
from hasten.core.tensors import Array, Tensors, unlike_rows
from hasten.errors import CandidateError

SIZES = (2, 4, 8, 16, 32)
"""Batch sizes that are tried beside 1."""
_BYTES = 64 << 20
"""Largest size of one batch's inputs."""
_BUDGET_NS = 2_000_000_000
"""Time after which no larger batch is tried."""
_RUNS = 3
_LOUD = 8.0
"""Factor by which batch mates are scaled up, to expose a quantization scale that a batch shares."""


def batch_sizes(loaded: Loaded, most: int | None) -> tuple[tuple[int, ...], str]:
    """Return the batch sizes to use, and a note for people; "" where there is none.

    A size is used if the model takes it, a sample's answer in such a batch is that of the sample
    alone, and a batch takes less time per sample than smaller ones. A certificate covers its own
    batch size alone, so a certified bundle keeps to 1 unless `most` is given.

    Args:
        loaded: The open bundle.
        most: Largest size to try; None for the largest that its certificate allows.
    """
    certified = loaded.manifest.status == "certified"
    largest = most if most is not None else 1 if certified else SIZES[-1]
    sizes = [1]
    tried = [n for n in SIZES if n <= largest and _takes(loaded, n)]
    if not tried:
        return (1,), ""
    requests = _requests(loaded)
    each_bytes = sum(array.nbytes for array in requests[0].values())
    start_ns = time.perf_counter_ns()
    try:
        alone = loaded.run(requests[0])
        best_ns = _least_ns(loaded, requests[0])
        for size in tried:
            if size * each_bytes > _BYTES or time.perf_counter_ns() - start_ns > _BUDGET_NS:
                break
            batch = _batch(requests, size)
            unlike = _unlike(loaded.run(batch), alone, size)
            if unlike:
                return (1,), f"one sample at a time: {unlike}"
            per_row_ns = _least_ns(loaded, batch) / size
            if per_row_ns < best_ns:
                sizes.append(size)
                best_ns = per_row_ns
    except CandidateError as error:
        return (1,), f"one sample at a time: a batch fails: {error}"
    note = ""
    if certified and len(sizes) > 1:
        note = f"batches of up to {sizes[-1]} are used; its own certificate covers lone samples"
    return tuple(sizes), note


def split(rows: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the batches that rows are cut into, the largest first."""
    parts = []
    for size in sorted(sizes, reverse=True):
        count, rows = divmod(rows, size)
        parts += [size] * count
    return parts


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


def stacked(requests: Sequence[Tensors]) -> dict[str, Array]:
    """Return requests as one, with their rows one after another."""
    return {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}


def _takes(loaded: Loaded, size: int) -> bool:
    """Whether a model's inputs and outputs share an open batch axis that takes a size."""
    axes = {spec.shape[:1] for spec in loaded.inputs}
    open_axis = len(axes) == 1 and all(axis and isinstance(axis[0], str) for axis in axes)
    sizes = loaded.batch_sizes
    given = all(spec.shape for spec in loaded.outputs)
    return open_axis and given and (sizes is None or size in sizes)


def _requests(loaded: Loaded) -> list[dict[str, Array]]:
    """Return requests of one row to try: those that the bundle keeps, or else a random one."""
    kept = [{n: a[:1] for n, a in request.items()} for request in loaded.requests]
    if kept:
        return kept
    rng = np.random.default_rng(0)
    made = {}
    for spec in loaded.request:
        shape = (1, *spec.sizes[1:])
        if np.dtype(spec.dtype).kind == "f":
            made[spec.name] = rng.standard_normal(shape, np.float32).astype(spec.dtype, copy=False)
        else:
            made[spec.name] = rng.integers(0, 2, shape, np.int8).astype(spec.dtype)
    return [made]


def _batch(requests: Sequence[dict[str, Array]], size: int) -> dict[str, Array]:
    """Return a batch of the first request, and of others that are scaled up."""
    mates = [requests[(1 + row) % len(requests)] for row in range(size - 1)]
    with np.errstate(over="ignore"):
        loud = [
            {n: a * a.dtype.type(_LOUD) if a.dtype.kind == "f" else a for n, a in mate.items()}
            for mate in mates
        ]
    return stacked([requests[0], *loud])


def _unlike(answers: Tensors, alone: Tensors, size: int) -> str:
    """Say why the first row's answer in a batch isn't its answer alone; "" where it is."""
    for name, array in answers.items():
        if array.shape[:1] != (size,):
            return f"the output {name!r} of a batch of {size} has the shape {list(array.shape)}"
    if unlike_rows({name: array[:1] for name, array in answers.items()}, alone).any():
        return f"in a batch of {size} an answer depends on the others in it"
    return ""


def _least_ns(loaded: Loaded, request: Tensors) -> float:
    """Return the least time of some runs."""
    times = []
    for _ in range(_RUNS):
        start_ns = time.perf_counter_ns()
        loaded.run(request)
        times.append(time.perf_counter_ns() - start_ns)
    return min(times)
