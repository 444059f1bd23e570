"""Check that a captured graph answers the request that it is asked, and not the one of its capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hasten.core.tensors import Array, Tensors

Answer = Callable[[Tensors], Mapping[str, Array]]

RUNS = 3
"""Number of runs after which a graph is captured: ONNX Runtime's providers capture at the third."""
_TOLERANCE = 0.01
"""Largest difference of a replay's answer, as a share of the largest answer: kernels may sum in another
order at each run, and a replay of another request's answer differs by much more."""


def answers_another(inputs: Tensors, plain: Answer, replayed: Answer) -> bool:
    """Whether replays of a graph differ from the answers without it, for two different requests.

    Known of ONNX Runtime's TensorRT provider: https://github.com/microsoft/onnxruntime/issues/20050

    Args:
        inputs: Request that the graph is captured with.
        plain: Function that answers without a graph.
        replayed: Function that answers by the graph, which its first runs capture.
    """
    others = {name: other(array) for name, array in inputs.items()}
    expected = {name: array.copy() for name, array in plain(others).items()}
    for _ in range(RUNS):
        first = replayed(inputs)
    first = {name: array.copy() for name, array in first.items()}
    return not (_alike(replayed(others), expected) and _alike(first, plain(inputs)))


def other(array: Array) -> Array:
    """Return an input that is as valid as the given one, and differs from it if possible.

    It is the input from its end to its beginning, so that each value is one that the model takes.
    Where that is no difference, as for zeros, every second element becomes one.
    """
    flipped = np.ascontiguousarray(np.flip(array))
    if array.size == 0 or array.tobytes() != flipped.tobytes():
        return flipped
    changed = array.copy().reshape(-1)
    changed[::2] = 0 if changed[0] == 1 else 1
    return changed.reshape(array.shape)


def _alike(got: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    return all(_close(got[name], array) for name, array in right.items())


def _close(got: Array, right: Array) -> bool:
    if right.dtype.kind not in "fc":
        return bool(np.array_equal(got, right))
    largest = float(np.max(np.abs(right), initial=0.0, where=np.isfinite(right)))
    return bool(np.allclose(got, right, rtol=0, atol=_TOLERANCE * largest, equal_nan=True))
