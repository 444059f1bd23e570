"""Recurrent models, one request at a time on one thread: their C against ONNX Runtime and OpenVINO.

    python benchmarks/recurrent.py [NAME ...]

Every way answers the same rotating requests in turns within one process: a turn is some calls, and
a round gives each way one turn. Ratios are of a round's medians, with what holds 95% of the rounds.
ONNX Runtime and OpenVINO are called as their documentation says, on one thread. A step is also asked of
a session (`hasten.Loaded.session`), which carries the state itself; the other ways get one with each request.
A model whose batch is open is asked in batches of several sizes, whole sequences in each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import helper, numpy_helper
from unsearched import unsearched

import hasten
from hasten.core.sequences import Sequences
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.onnx import load

ROUNDS, REQUESTS = 40, 64
BATCHES = (1, 16, 256)
BATCH_REQUESTS = 4
"""Number of requests of a turn in batches of more than one sequence."""
GATES = {"GRU": 3, "LSTM": 4}
Call = Callable[[dict[str, Array]], object]


def model(op: str, features: int, hidden: int, steps: int, classes: int = 0) -> onnx.ModelProto:
    """Return a model of one layer; of one step with its state given and answered, if `steps` is 1."""
    rng = np.random.default_rng(0)
    wide = GATES[op] * hidden
    x = helper.make_tensor_value_info("x", 1, [steps, 1, features])
    shapes = {"w": (1, wide, features), "r": (1, wide, hidden), "b": (1, 2 * wide)}
    constants = [
        numpy_helper.from_array((rng.standard_normal(s) / hidden**0.5).astype(np.float32), name)
        for name, s in shapes.items()
    ]
    state = helper.make_tensor_value_info("h", 1, [1, 1, hidden])
    kind = {"linear_before_reset": 1} if op == "GRU" else {}
    given = ["x", "w", "r", "b", "", "h"] if steps == 1 else ["x", "w", "r", "b"]
    nodes = [helper.make_node(op, given, ["y", "last"], hidden_size=hidden, **kind)]
    outputs = [helper.make_tensor_value_info("last", 1, [1, 1, hidden])]
    if steps > 1 and not classes:
        outputs.append(helper.make_tensor_value_info("y", 1, [steps, 1, 1, hidden]))
    if classes:
        constants += [
            numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name)
            for name, s in (("v", (hidden, classes)), ("c", (classes,)))
        ]
        constants.append(numpy_helper.from_array(np.array([1, hidden], np.int64), "row"))
        nodes += [
            helper.make_node("Reshape", ["last", "row"], ["flat"]),
            helper.make_node("Gemm", ["flat", "v", "c"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["classes"]),
        ]
        outputs = [helper.make_tensor_value_info("classes", 1, [1, classes])]
    inputs = [x, state] if steps == 1 else [x]
    graph = helper.make_graph(nodes, op, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def in_batches(features: int, hidden: int, steps: int, classes: int) -> onnx.ModelProto:
    """Return a GRU over sequences in a batch of any size, `[batch, steps, features]`, with its last state's classes."""
    rng = np.random.default_rng(0)
    wide = GATES["GRU"] * hidden
    shapes = {"w": (1, wide, features), "r": (1, wide, hidden), "b": (1, 2 * wide)}
    constants = [
        numpy_helper.from_array((rng.standard_normal(s) / hidden**0.5).astype(np.float32), name)
        for name, s in (shapes | {"v": (hidden, classes), "c": (classes,)}).items()
    ]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    gru = {"hidden_size": hidden, "linear_before_reset": 1}
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["turned", "w", "r", "b"], ["", "last"], **gru),
        helper.make_node("Squeeze", ["last", "first"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["classes"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, 1, shape)]
        for name, shape in (("x", ["n", steps, features]), ("classes", ["n", classes]))
    ]
    graph = helper.make_graph(nodes, "GRU", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


MODELS = {
    "GRU 40 -> 128, a step": lambda: model("GRU", 40, 128, 1),
    "LSTM 64 -> 128, 50 steps": lambda: model("LSTM", 64, 128, 50),
    "sensor: GRU 3 -> 32, 100 steps, 6 classes": lambda: model("GRU", 3, 32, 100, 6),
    "sensors in batches: GRU 3 -> 32, 100 steps, 6 classes": lambda: in_batches(3, 32, 100, 6),
}


@contextmanager
def sessions(artifact: Artifact, target: Target) -> Iterator[dict[str, Call]]:
    """Yield what a user calls who has a bundle of a step: one session gets arrays, another one mappings."""
    states = Sequences((("h", "last"),))
    path = artifact.path.parent / "step.hasten"
    unsearched(path, CompiledC(), artifact, target, sequences=states)
    with hasten.load(path) as fast:
        session, other = fast.session(), fast.session()
        yield {
            "C, session of a bundle": lambda request: session(request["x"]),
            "C, session, by name": lambda request: other({"x": request["x"]}),
        }


@contextmanager
def ways(path: Path, request: dict[str, Array]) -> Iterator[dict[str, Call]]:
    """Yield the calls that are compared, by name."""
    target = Target.host().with_threads(1)
    built = path.parent / "built"
    built.mkdir()
    artifact = CompiledC().build(load(path), target, built)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runtime = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = runtime.io_binding()
    held = {name: array.copy() for name, array in request.items()}
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in held.items()}
    for name, value in kept.items():
        binding.bind_ortvalue_input(name, value)
    for output in runtime.get_outputs():
        binding.bind_output(output.name)

    def bound(request: dict[str, Array]) -> object:
        for name, array in request.items():
            kept[name].update_inplace(array)
        runtime.run_with_iobinding(binding)
        return binding

    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )
    infer = compiled.create_infer_request()
    with ExitStack() as opened:
        session = opened.enter_context(CompiledC().open(artifact, target))
        stateful = "h" in request
        asked = opened.enter_context(sessions(artifact, target)) if stateful else {}
        outputs = session.run(request)
        again = session.bind(held, outputs)

        def copied(request: dict[str, Array]) -> object:
            for name, array in request.items():
                held[name][...] = array
            again()
            return outputs

        yield {
            "C, bound": copied,
            "C, run": session.run,
            **asked,
            "ONNX Runtime, IO binding": bound,
            "ONNX Runtime, run": lambda request: runtime.run(None, request),
            "OpenVINO, infer request": lambda request: infer.infer(
                request, share_inputs=True, share_outputs=True
            ),
        }


def check(path: Path, calls: dict[str, Call], request: dict[str, Array]) -> None:
    """Check answers against ONNX Runtime's: those of sessions, which begin with zeros, too."""
    runtime = onnxruntime.InferenceSession(path)
    zeros = request | {name: np.zeros_like(array) for name, array in request.items() if name == "h"}
    for way, call in calls.items():
        if way == "C, run" or "session" in way:
            right = runtime.run(None, zeros if "session" in way else request)
            got = list(call(request).values())  # type: ignore[attr-defined]
            for one, other in zip(got, right, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def measured(name: str, calls: dict[str, Call], requests: list[dict[str, Array]]) -> None:
    """Time ways in turns and print what came out."""
    times: dict[str, list[list[int]]] = {way: [] for way in calls}
    for round_ in range(ROUNDS + 1):
        for way, call in calls.items():
            taken = []
            for request in requests:
                begin = time.perf_counter_ns()
                call(request)
                taken.append(time.perf_counter_ns() - begin)
            if round_:  # the first one warms up
                times[way].append(taken)
    medians = {way: np.median(found, axis=1) for way, found in times.items()}
    others = [way for way in calls if not way.startswith("C, ")]
    best = min(others, key=lambda way: float(np.median(medians[way])))
    print(f"\n{name}; the best of the others: {best}")
    print(f"{'':26} {'p50 us':>8} {'p99 us':>8}   {'best of the others / it':>24}")
    for way, found in times.items():
        middle, late = np.quantile(np.concatenate(found), [0.5, 0.99]) / 1e3
        low, ratio, high = np.quantile(medians[best] / medians[way], [0.025, 0.5, 0.975])
        print(f"{way:26} {middle:8.2f} {late:8.2f}   {ratio:8.2f} ({low:.2f} to {high:.2f})")


def asked(name: str, path: Path, made: onnx.ModelProto, batch: int = 1) -> None:
    """Check and time the ways to answer requests of a model, with a batch of some size where it is open."""
    rng = np.random.default_rng(1)
    shapes = {
        one.name: [axis.dim_value or batch for axis in one.type.tensor_type.shape.dim]
        for one in made.graph.input
    }
    requests = [
        {one: rng.standard_normal(shape).astype(np.float32) for one, shape in shapes.items()}
        for _ in range(REQUESTS if batch == 1 else min(REQUESTS, BATCH_REQUESTS))
    ]
    with ways(path, requests[0]) as calls:
        check(path, calls, requests[0])
        measured(name, calls, requests)


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        made = MODELS[name]()
        is_open = any(
            axis.dim_param for one in made.graph.input for axis in one.type.tensor_type.shape.dim
        )
        for batch in BATCHES if is_open else (1,):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.onnx")
                onnx.save(made, path)
                asked(f"{name}, {batch} at once" if is_open else name, path, made, batch)


if __name__ == "__main__":
    main()
