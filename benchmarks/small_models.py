"""Models of some microseconds as compiled C, against the runtimes' fastest calls, in turns, with rotating rows.

    python benchmarks/small_models.py [mlp|lenet|cnn|transformer ...]

Each contender has one thread and its arrays bound before; each call's row is another one, written into
the bound array outside the clock. What the clock itself takes is taken off. emx-onnx-cgen joins where
it is installed: its C is made for each batch size, and built by the machine's compiler. timber-compiler
(0.6) writes no C for layers of a network.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.onnx import load
from hasten.testing import models

Array = npt.NDArray[np.float32]
BATCHES = (1, 16, 256, 4096)
ROWS = 1000
_BUDGET_S = 0.25
"""Seconds of calls for each contender and round."""
_ROUNDS = 7


@dataclass(frozen=True)
class Contender:
    """A bound call.

    Attributes:
        name: Name of the runtime, and of the way in which it is called.
        call: Answers what is in `given`.
        given: Array of the request, which is written to between calls.
        answer: Returns the answer to what is in `given`.
    """

    name: str
    call: Callable[[], Any]
    given: Array
    answer: Callable[[], Array]


def mlp(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """Write a network of 30-64-32-1."""
    text = """
        mlp (float[batch, 30] x) => (float[batch, 1] y) {
            a = Gemm(x, w1, b1)
            ra = Relu(a)
            b = Gemm(ra, w2, b2)
            rb = Relu(b)
            c = Gemm(rb, w3, b3)
            y = Sigmoid(c)
        }"""
    shapes = {"w1": (30, 64), "b1": (64,), "w2": (64, 32), "b2": (32,), "w3": (32, 1), "b3": (1,)}
    return models.write(folder / "mlp.onnx", text, shapes), (30,)


def lenet(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """Write LeNet-5 for pictures of 28 x 28, with ReLU and the largest of each 2 x 2."""
    text = """
        lenet (float[batch, 1, 28, 28] x) => (float[batch, 10] y) {
            c1 = Conv <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (x, w1, b1)
            r1 = Relu(c1)
            p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
            c2 = Conv <kernel_shape = [5, 5]> (p1, w2, b2)
            r2 = Relu(c2)
            p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
            f = Flatten <axis = 1> (p2)
            d1 = Gemm(f, w3, b3)
            r3 = Relu(d1)
            d2 = Gemm(r3, w4, b4)
            r4 = Relu(d2)
            y = Gemm(r4, w5, b5)
        }"""
    shapes = {
        "w1": (6, 1, 5, 5),
        "b1": (6,),
        "w2": (16, 6, 5, 5),
        "b2": (16,),
        "w3": (400, 120),
        "b3": (120,),
        "w4": (120, 84),
        "b4": (84,),
        "w5": (84, 10),
        "b5": (10,),
    }
    return models.write(folder / "lenet.onnx", text, shapes), (1, 28, 28)


def cnn(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """Write a network of three convolutions of 3 x 3, up to 64 channels, for pictures of 28 x 28."""
    text = """
        cnn (float[batch, 1, 28, 28] x) => (float[batch, 10] y) {
            c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            r1 = Relu(c1)
            p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
            c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p1, w2, b2)
            r2 = Relu(c2)
            p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
            c3 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p2, w3, b3)
            r3 = Relu(c3)
            g = GlobalAveragePool(r3)
            f = Flatten <axis = 1> (g)
            y = Gemm(f, w4, b4)
        }"""
    shapes = {
        "w1": (16, 1, 3, 3),
        "b1": (16,),
        "w2": (32, 16, 3, 3),
        "b2": (32,),
        "w3": (64, 32, 3, 3),
        "b3": (64,),
        "w4": (64, 10),
        "b4": (10,),
    }
    return models.write(folder / "cnn.onnx", text, shapes), (1, 28, 28)


def transformer(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """Write a block of attention and two layers over 16 steps of 32 numbers."""
    return models.tiny_transformer_block(folder), (16, 32)


@contextmanager
def hastened(path: Path, rows: Array, folder: Path) -> Iterator[Contender]:
    """Yield the compiled model by `bind`."""
    model, target, engine = load(path), Target.host().with_threads(1), CompiledC()
    with engine.open(engine.build(model, target, folder), target) as session:
        given = rows.copy()
        (spec,) = session.outputs
        out = np.empty((len(rows), *spec.shape[1:]), spec.dtype)
        call = session.bind({session.inputs[0].name: given}, {spec.name: out})

        def answer() -> Array:
            call()
            return out

        yield Contender("hasten bind", call, given, answer)


@contextmanager
def onnx_runtime(path: Path, rows: Array, bound: bool) -> Iterator[Contender]:
    """Yield ONNX Runtime, by `run` or by IO binding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, given = session.get_inputs()[0].name, rows.copy()
    request = {name: given}
    (out,) = session.run(None, request)
    if not bound:
        yield Contender(
            "ONNX Runtime run",
            lambda: session.run(None, request),
            given,
            lambda: session.run(None, request)[0],
        )
        return
    binding = session.io_binding()
    binding.bind_input(name, "cpu", 0, np.float32, given.shape, given.ctypes.data)
    shape, place = out.shape, out.ctypes.data
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, shape, place)
    run = session._sess.run_with_iobinding

    def answer() -> Array:
        run(binding._iobinding, None)
        return out

    yield Contender("ONNX Runtime IO binding", lambda: run(binding._iobinding, None), given, answer)


@contextmanager
def openvino(path: Path, rows: Array) -> Iterator[Contender]:
    """Yield OpenVINO's request with its tensors bound."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(rows.shape))
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    given = rows.copy()
    request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
    request.infer()
    out = request.get_output_tensor().data

    def answer() -> Array:
        request.infer()
        return out

    yield Contender("OpenVINO", request.infer, given, answer)


@contextmanager
def generated(path: Path, rows: Array, folder: Path) -> Iterator[Contender]:
    """Yield what emx-onnx-cgen writes, built by the machine's compiler, by ctypes with cached pointers."""
    import onnx

    model = onnx.version_converter.convert_version(onnx.load(path), 17)
    (made,) = model.graph.output
    shape = [len(rows), *(one.dim_value for one in made.type.tensor_type.shape.dim[1:])]
    onnx.save(model, folder / "emx.onnx")
    program = Path(sys.executable).with_name("emx-onnx-cgen")
    fixed = ["--input-dim", f"batch={len(rows)}", "--large-weight-threshold", "0"]
    command = [program, "compile", folder / "emx.onnx", folder / "emx.c", *fixed]
    subprocess.run(command, check=True, capture_output=True)
    flags = [
        "-O3",
        "-march=native",
        "-ffast-math",
        "-shared",
        "-fPIC",
        "-o",
        folder / f"emx{len(rows)}.so",
    ]
    subprocess.run(["cc", *flags, folder / "emx.c", "-lm"], check=True, capture_output=True)
    library = ctypes.CDLL(str(folder / f"emx{len(rows)}.so"))
    function = library.model
    given, out = rows.copy(), np.empty(shape, np.float32)
    pointers = ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(out.ctypes.data)

    def answer() -> Array:
        function(*pointers)
        return out

    yield Contender("emx-onnx-cgen", lambda: function(*pointers), given, answer)


def clock_ns() -> float:
    """Return what two looks at the clock take, in nanoseconds."""
    looks = [time.perf_counter_ns() for _ in range(4001)]
    return float(np.median(np.diff(looks)))


def timed(contender: Contender, batch: int, data: Array) -> Array:
    """Return the times of calls in microseconds, each on the next rows."""
    found: list[int] = []
    until = time.perf_counter() + _BUDGET_S
    at = 0
    call, given = contender.call, contender.given
    while not found or time.perf_counter() < until:
        for _ in range(max(1, 64 // batch)):
            given[...] = data[at : at + batch]
            at = at + batch if at + 2 * batch <= len(data) else 0
            begin = time.perf_counter_ns()
            call()
            found.append(time.perf_counter_ns() - begin)
    return (np.array(found) / 1e3).astype(np.float32)


def compare(name: str, write: Callable[[Path], tuple[Path, tuple[int, ...]]]) -> None:
    """Print a table of one model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, shape = write(folder)
        data = np.random.default_rng(0).standard_normal((max(ROWS, 2 * max(BATCHES)), *shape))
        for batch in BATCHES:
            _turns(name, path, batch, data.astype(np.float32), folder)


def _turns(name: str, path: Path, batch: int, data: Array, folder: Path) -> None:
    rows = data[:batch]
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(hastened(path, rows, folder))]
        contenders += [stack.enter_context(onnx_runtime(path, rows, one)) for one in (True, False)]
        contenders.append(stack.enter_context(openvino(path, rows)))
        try:
            contenders.append(stack.enter_context(generated(path, rows, folder)))
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            print(f"without emx-onnx-cgen: {error}")
        wanted = contenders[1].answer()
        for one in contenders:
            np.testing.assert_allclose(one.answer(), wanted, rtol=1e-3, atol=1e-4)
        times: dict[str, list[Array]] = {one.name: [] for one in contenders}
        for _ in range(_ROUNDS):
            for one in contenders:
                times[one.name].append(timed(one, batch, data))
    clock = clock_ns() / 1e3
    ours = [float(np.median(one)) - clock for one in times[contenders[0].name]]
    for other, rounds in times.items():
        whole = np.concatenate(rounds) - clock
        ratios = [
            (float(np.median(one)) - clock) / mine for one, mine in zip(rounds, ours, strict=True)
        ]
        print(
            f"{name:12} {batch:5} {other:24} p50 {np.median(whole):10.2f} us, "
            f"p99 {np.quantile(whole, 0.99):10.2f} us, {np.median(ratios):6.2f} times hasten's "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


MODELS = {"mlp": mlp, "lenet": lenet, "cnn": cnn, "transformer": transformer}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODELS:
        compare(chosen, MODELS[chosen])
