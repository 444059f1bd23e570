"""The checker says what TensorRT says, before it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.support.tensorrt_graphs import ALTERED, BROKEN, GOOD, Graph

from hasten.engines.tensorrt.profile import OPERATORS, alterations, violations
from hasten.errors import CandidateError

NEEDED = "needs the extra gpu: pip install 'hasten[gpu]'"


def named(graph: Graph) -> str:
    return graph.name


@pytest.mark.parametrize("graph", GOOD, ids=named)
def test_what_tensorrt_takes_breaks_nothing(graph: Graph, tmp_path: Path) -> None:
    path = graph.write(tmp_path)
    assert violations(path, graph.part) == ()
    assert alterations(path) == ()


@pytest.mark.parametrize("graph", BROKEN, ids=named)
def test_the_node_that_breaks_the_profile_is_named(graph: Graph, tmp_path: Path) -> None:
    assert str(violations(graph.write(tmp_path), graph.part)[0]) == graph.says


@pytest.mark.parametrize("graph", ALTERED, ids=named)
def test_what_would_be_taken_for_something_else_is_said(graph: Graph, tmp_path: Path) -> None:
    path = graph.write(tmp_path)
    assert violations(path) == ()
    assert str(alterations(path)[0]) == graph.says


@pytest.mark.parametrize("graph", [GOOD[0], BROKEN[0], BROKEN[10]], ids=named)
def test_weights_outside_of_the_file_are_looked_at_too(graph: Graph, tmp_path: Path) -> None:
    path = graph.write(tmp_path)
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, location="data", size_threshold=0
    )
    assert (tmp_path / "data").exists()
    assert [str(found) for found in violations(path)[:1]] == ([graph.says] if graph.says else [])
    (tmp_path / "data").unlink()
    with pytest.raises(CandidateError, match=r"^can't read 's': [^\n]+$"):
        violations(path)


def test_what_a_gpu_lacks_is_no_matter_where_it_isnt_known_which(tmp_path: Path) -> None:
    for graph in BROKEN:
        if "float8" in graph.name or "Turing" in graph.name:
            assert violations(graph.write(tmp_path), "") == ()


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(CandidateError, match=r"^can't read graph.onnx: [^\n]+$"):
        violations(path)


@pytest.fixture
def trt() -> Any:
    """TensorRT for RTX itself."""
    return pytest.importorskip("tensorrt_rtx_bindings", reason=NEEDED)


def taken(trt: Any, path: Path, part: str) -> bool:
    """Whether the parser and the builder take a graph; nothing of hasten's is asked."""
    logger = LOGGERS.setdefault(trt, trt.Logger(trt.Logger.INTERNAL_ERROR))
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[part.upper()], 0)
    return builder.build_serialized_network(network, config) is not None


LOGGERS: dict[Any, Any] = {}
"""The library keeps to the first one that it is given."""


@pytest.mark.parametrize("graph", [*GOOD, *BROKEN, *ALTERED], ids=named)
def test_the_checkers_verdict_is_the_parsers_and_builders(
    trt: Any, graph: Graph, tmp_path: Path
) -> None:
    path = graph.write(tmp_path)
    assert taken(trt, path, graph.part) == (not violations(path, graph.part))


def test_the_operators_are_those_that_the_parser_has(trt: Any) -> None:
    logger = LOGGERS.setdefault(trt, trt.Logger(trt.Logger.INTERNAL_ERROR))
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    has = {name for name in known if parser.supports_operator(name)}
    without_what_runs_them = {
        *("CausalConvWithState", "LinearAttention", "NonMaxSuppression", "NonZero", "RoiAlign")
    }
    assert has - OPERATORS == without_what_runs_them
    assert known & OPERATORS <= has
