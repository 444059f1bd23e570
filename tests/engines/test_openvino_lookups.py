"""Numbers that OpenVINO's graphs look up at calculated places: answered as by ONNX Runtime, or refused where that refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino, converted
from hasten.engines.openvino.runtime import new_core
from hasten.engines.openvino.watched import watch
from hasten.errors import BeyondRange
from hasten.inputs.models.onnx import load

Numbers = npt.NDArray[Any]
_TABLE = f"float[6, 2] t = {{{', '.join(map(str, range(12)))}}}"
_CONSTANTS = (
    f"{_TABLE}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64 first = {{0}}, int64 next = {{1}}, "
    "int64 most = {5}, int64[2] ends = {0, 3}, int64[8] places = {0, 1, 2, 3, 4, 5, 6, 7}, int64[1] many = {1000}"
)
_CALCULATED = {
    "a product": (
        "int64[N] i",
        "j = Mul (i, two)  y = Gather (t, j)",
        ([0, 2], [-3, 1]),
        ([0, 3], [-4, 0]),
    ),
    "another axis": (
        "int64[N] i",
        "j = Mul (i, i)  y = Gather <axis = 1> (t, j)",
        ([0, 1], [-1, 1]),
        ([2, 0],),
    ),
    "rounded floats": (
        "float[N] i",
        "f = Floor (i)  j = Cast <to = 7> (f)  y = Gather (t, j)",
        ([0.5, 5.5], [-6.0, 1.0]),
        ([6.5, 0.0], [-6.5, 0.0]),
    ),
    "steps of a request": (
        "float[N] i",
        "s = Shape (i)  n = Squeeze (s, zero)  j = Range (first, n, next)  y = Gather (t, j)",
        ([1.0, 2.0], [1.0] * 6),
        ([1.0] * 7,),
    ),
    "positions": (
        "int64[N] i",
        "s = Shape (i)  j = Slice (places, zero, s)  y = Gather (t, j)",
        ([1, 2], [1] * 6),
        ([1] * 7, [1] * 8),
    ),
    "a place of a short request": (
        "float[N] i",
        "y = Gather (i, ends)",
        ([1.0, 2.0, 3.0, 4.0],),
        ([1.0, 2.0, 3.0], [1.0]),
    ),
    "rows of a request": (
        "int64[N] i",
        "f = Cast <to = 1> (i)  y = Gather (f, i)",
        ([0, 1, 2], [-1, 0]),
        ([3, 0, 0], [0, -3]),
    ),
    "the largest of more": (
        "float[8] i",
        "j = ArgMax <axis = 0, keepdims = 0> (i)  y = Gather (t, j)",
        ([0.0, 0, 0, 0, 0, 1, 0, 0],),
        ([0.0, 0, 0, 0, 0, 0, 1, 0],),
    ),
}
"""Graphs by name: input, nodes that make `y`, requests that are answered, and those that are refused."""


def written(folder: Path, given: str, nodes: str) -> Path:
    """Write a model; return its path."""
    path = folder / "model.onnx"
    text = f"g ({given}) => (float y) <{_CONSTANTS}> {{ {nodes} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def requests(given: str, numbers: Any) -> list[dict[str, Numbers]]:
    """Return requests with some numbers."""
    return [
        {"i": np.array(one, np.float32 if given.startswith("float") else np.int64)}
        for one in numbers
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _CALCULATED)
def test_a_request_that_looks_beyond_a_tensor_is_refused(
    tmp_path: Path, name: str, threads: int
) -> None:
    given, nodes, inside, beyond = _CALCULATED[name]
    path, host = written(tmp_path, given, nodes), Target.host().with_threads(1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Optimized, it makes a Slice of a Gather of a Range, and so cuts off what is beyond.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    original = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    artifact = OpenVino().build(load(path), host, tmp_path)
    with OpenVino(threads=threads).open(artifact, host) as session:
        for _ in range(2):
            for request in requests(given, inside):
                (found,), (wanted,) = session.run(request).values(), original.run(None, request)
                assert np.array_equal(found, wanted)
            for request in requests(given, beyond):
                with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
                    original.run(None, request)
                with pytest.raises(BeyondRange) as error:
                    session.run(request)
                assert str(error.value) == (
                    "OpenVINO reads zeros beyond a tensor, as Gather (node 'y') does for this request: a number in it is out of "
                    "range, or it is too long or too short: give another, or use another engine"
                )


def test_a_graph_from_the_cache_refuses_as_a_compiled_one(tmp_path: Path) -> None:
    given, nodes, inside, beyond = _CALCULATED["a product"]
    host = Target.host().with_threads(1)
    artifact = OpenVino().build(load(written(tmp_path, given, nodes)), host, tmp_path)
    for _ in range(2):
        cache = CompileCache(CacheFolder(tmp_path / "cache", 1 << 30))
        with OpenVino().open_cached(artifact, host, cache) as session:
            session.run(requests(given, inside)[0])
            with pytest.raises(BeyondRange, match="reads zeros beyond a tensor"):
                session.run(requests(given, beyond)[0])
    assert (cache.found, cache.kept) == (1, 0)


def test_a_graph_that_was_compiled_by_other_rules_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, nodes, *_ = _CALCULATED["a product"]
    host = Target.host().with_threads(1)
    artifact = OpenVino().build(load(written(tmp_path, given, nodes)), host, tmp_path)
    found = []
    for other in (False, False, True):
        if other:
            monkeypatch.setattr(
                "hasten.engines.openvino.engine.rules", lambda: "of another version"
            )
        cache = CompileCache(CacheFolder(tmp_path / "cache", 1 << 30))
        with OpenVino().open_cached(artifact, host, cache):
            found.append(cache.found)
    assert found == [0, 1, 0]


@pytest.mark.parametrize(
    ("given", "nodes"),
    [
        ("int64[N] i", "y = Gather (t, i)"),
        ("int64[N] i", "z = GatherElements (ends, i)  y = Gather (t, z)"),
        ("int64[N] i", "j = Add (i, two)  y = Gather (t, j)"),
        ("int64[N, 2] i", "j, k = Split <axis = 1> (i)  y = Gather (t, k)"),
        ("float[N, 3] i", "y = Gather <axis = 1> (i, two)"),
        ("float[N] i", "y = Gather (i, zero)"),
        ("float[N, 6] i", "j = ArgMax <axis = 1> (i)  y = Gather (t, j)"),
        ("int64[N] i", "s = Shape (i)  z = Expand (zero, s)  y = Gather (t, z)"),
        (
            "int64[N] i",
            "s = Shape (i)  n = Gather (s, zero)  z = Expand (i, n)  y = Cast <to = 1> (z)",
        ),
    ],
)
def test_places_that_are_known_or_that_a_bundle_checks_need_no_output(
    tmp_path: Path, given: str, nodes: str
) -> None:
    artifact = converted(load(written(tmp_path, given, nodes)), tmp_path)
    graph = new_core().read_model(artifact.path)
    watch(graph)
    assert len(graph.outputs) == 1
