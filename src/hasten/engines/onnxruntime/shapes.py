"""Shapes in ONNX Runtime's trace of a request."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core.model import Model, libraries
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Tensors
from hasten.engines.failures import failed

if TYPE_CHECKING:
    import onnx

_ERRORS_ONLY = 3
_BESIDE = "session.model_external_initializers_file_folder_path"
_UNPACKED = "session.disable_prepacking"
"""Setting that keeps weights unpacked, since the trace leaves out the shapes of packed ones."""
_EVENT = "_kernel_time"


@dataclass(frozen=True)
class Execution:
    """Execution of a node.

    Attributes:
        inputs: Shapes of the tensors that it read, without optional ones that the node lacks.
        outputs: Shapes of the tensors that it wrote, without optional ones that the node lacks.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def executions(
    proto: onnx.ModelProto, model: Model, request: Tensors
) -> dict[str, list[Execution]]:
    """Answer one request with the graph as it is, and list the executions of each node.

    Nodes in a branch that isn't taken are left out, as are nodes that the runtime replaces by
    others. Nodes in a loop occur once per iteration.

    Args:
        proto: Graph whose nodes all have different names, including those of subgraphs.
        model: Model that locates external data and custom operators.
        request: Inputs by name.

    Returns:
        Executions of each node in order, by the node's name.

    Raises:
        CandidateError: the runtime can't run the graph.
    """
    ort = import_quietly("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="hasten-shapes-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "trace")
        options.add_session_config_entry(_BESIDE, str(model.path.parent))
        options.add_session_config_entry(_UNPACKED, "1")
        try:
            for library in libraries(model.custom_ops, "RegisterCustomOps"):
                options.register_custom_ops_library(str(library))
            session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            session.run(None, dict(request))
            trace = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:
            raise failed("ONNX Runtime can't infer the shapes", error) from error
    return _executions(trace)


def _executions(trace: Iterable[Mapping[str, Any]]) -> dict[str, list[Execution]]:
    found: dict[str, list[Execution]] = {}
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            said = event["args"]
            execution = Execution(_shapes(said, "input"), _shapes(said, "output"))
            found.setdefault(event["name"].removesuffix(_EVENT), []).append(execution)
    return found


def _shapes(said: Mapping[str, Any], which: str) -> tuple[tuple[int, ...], ...]:
    """Return shapes from the trace, where a tensor is a dictionary from its type to its shape."""
    return tuple(tuple(*tensor.values()) for tensor in said.get(f"{which}_type_shape", ()))
