"""Forests of LightGBM, as hasten compiles them, beside what else answers from them, in one run.

    pip install lightgbm onnxmltools treelite tl2cgen 'llvmlite<0.45' lleaves timber-compiler
    python benchmarks/tabular.py [--seconds 20] [--only 200x31]

Every row differs from the one before: a row that is repeated flatters trees 1.7 to 3 times, since the
processor learns its branches. All versions answer the same block of rows by turns, with one thread. Single rows
are timed one call at a time; the best of a row's rounds counts, which is robust on a busy machine; p50 and p99
are over rows. "raw" is a library's C function called through ctypes with cached pointers, which no documentation
offers. What isn't installed is said so.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models import onnx as onnx_frontend

COLUMNS, ROWS = 30, 4096
BATCHES = (1, 16, 256, 4096)
FORESTS = {
    "50 of depth 4": {"n": 50, "num_leaves": 16, "max_depth": 4},
    "200x31": {"n": 200, "num_leaves": 31},
    "1000x63": {"n": 1000, "num_leaves": 63},
    "500 of depth 10": {"n": 500, "num_leaves": 1024, "max_depth": 10, "min_data_in_leaf": 5},
}


@dataclass
class Version:
    """One way to answer.

    Attributes:
        name: Name of the library, and of the way in which it is called.
        single: Makes the call for one row, which is timed.
        batch: Makes the call for rows; None where there is none.
    """

    name: str
    single: Callable[[Any], Callable[[], Any]] | None
    batch: Callable[[Any], Callable[[], Any]] | None = None


def trained(size: dict[str, int]) -> tuple[Any, Any]:
    """Train on noise with a pattern; return the model and rows."""
    import lightgbm

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20_000, COLUMNS)).astype(np.float32)
    score = rows @ rng.standard_normal(COLUMNS) + 2 * np.sin(2 * rows[:, 0] * rows[:, 1])
    score += rows[:, 2] ** 2 - 2 * rows[:, 3] * rows[:, 4] + 0.5 * rng.standard_normal(len(rows))
    rest = {key: value for key, value in size.items() if key != "n"}
    settings = {"objective": "binary", "verbose": -1, "num_threads": 2, **rest}
    data = lightgbm.Dataset(rows, score > np.median(score))
    return lightgbm.train(settings, data, size["n"]), rows[:ROWS].astype(np.float64)


def as_onnx(booster: Any) -> onnx.ModelProto:
    """Write the raw scores of a model without categories or missing values, in float64."""
    lists: dict[str, list[Any]] = {key: [] for key in ("feature", "split", "t", "tl", "f", "fl")}
    leaves: list[float] = []

    def add(node: dict[str, Any]) -> tuple[int, int]:
        if "split_feature" not in node:
            leaves.append(node["leaf_value"])
            return len(leaves) - 1, 1
        here = len(lists["feature"])
        for key, one in (("feature", node["split_feature"]), ("split", node["threshold"])):
            lists[key].append(one)
        for key in ("t", "tl", "f", "fl"):
            lists[key].append(0)
        for key, child in (("t", node["left_child"]), ("f", node["right_child"])):
            lists[key][here], lists[key + "l"][here] = add(child)
        return here, 0

    roots = [add(tree["tree_structure"])[0] for tree in booster.dump_model()["tree_info"]]
    count = len(lists["feature"])
    node = helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        tree_roots=roots,
        nodes_featureids=lists["feature"],
        nodes_modes=numpy_helper.from_array(np.zeros(count, np.uint8)),
        nodes_splits=numpy_helper.from_array(np.asarray(lists["split"])),
        nodes_truenodeids=lists["t"],
        nodes_trueleafs=lists["tl"],
        nodes_falsenodeids=lists["f"],
        nodes_falseleafs=lists["fl"],
        leaf_targetids=[0] * len(leaves),
        leaf_weights=numpy_helper.from_array(np.asarray(leaves)),
        n_targets=1,
    )
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["rows", width])
        for name, width in (("x", COLUMNS), ("y", 1))
    ]
    graph = helper.make_graph([node], "forest", shapes[:1], shapes[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def hasten_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """Compile the model by hasten."""
    path = folder / "forest.onnx"
    onnx.save(as_onnx(booster), path)
    target = Target.host().with_threads(1)
    artifact = CompiledC().build(onnx_frontend.load(path), target, folder)
    began = time.perf_counter()
    session = stack.enter_context(CompiledC().open(artifact, target))
    print(f"hasten opened it in {time.perf_counter() - began:.1f} s")
    row, out = np.zeros((1, COLUMNS)), np.zeros((1, 1))
    call = session.bind({"x": row}, {"y": out})

    def bound(rows: Any) -> Callable[[], Any]:
        row[...] = rows
        return call

    def batch(rows: Any) -> Callable[[], Any]:
        return session.bind({"x": rows}, {"y": np.zeros((len(rows), 1))})

    def plain(rows: Any) -> Callable[[], Any]:
        return lambda: session.run({"x": rows})

    return [Version("hasten, bind", bound, batch), Version("hasten, run", plain, plain)]


def lightgbm_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """LightGBM's own calls."""
    import lightgbm.basic as basic

    def plain(rows: Any) -> Callable[[], Any]:
        return lambda: booster.predict(rows, raw_score=True, num_threads=1)

    fast = ctypes.c_void_p()
    basic._safe_call(
        basic._LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
            booster._handle,
            1,
            0,
            0,
            1,
            ctypes.c_int32(COLUMNS),
            b"num_threads=1",
            ctypes.byref(fast),
        )
    )
    row, out, count = np.zeros(COLUMNS), np.zeros(1), ctypes.c_int64()
    given = (fast, ctypes.c_void_p(row.ctypes.data), ctypes.byref(count))
    taken = ctypes.c_void_p(out.ctypes.data)
    function = basic._LIB.LGBM_BoosterPredictForMatSingleRowFast

    def single(rows: Any) -> Callable[[], Any]:
        row[...] = rows[0]
        return lambda: function(*given, taken)

    return [Version("Booster.predict", plain, plain), Version("LightGBM, raw", single)]


def onnxruntime_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """ONNX Runtime on what onnxmltools writes, which is float32."""
    import onnxmltools
    import onnxruntime
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [("x", FloatTensorType([None, COLUMNS]))]
    model = onnxmltools.convert_lightgbm(booster, initial_types=shape, zipmap=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for output in model.graph.output:  # it says that there is one row
        output.type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [one.name for one in session.get_outputs()]

    def plain(rows: Any) -> Callable[[], Any]:
        given = {"x": rows.astype(np.float32)}
        return lambda: session.run(names[1:], given)

    def binding(rows: Any) -> Callable[[], Any]:
        made = session.io_binding()
        given = rows.astype(np.float32)
        made.bind_cpu_input("x", given)
        for name in names:
            made.bind_output(name)
        return lambda: (session.run_with_iobinding(made), given)

    return [
        Version("ONNX Runtime, run", plain, plain),
        Version("ONNX Runtime, IO binding", binding, binding),
    ]


def tl2cgen_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """Treelite's C, compiled by gcc."""
    import tl2cgen
    import treelite

    booster.save_model(folder / "forest.txt")
    model = treelite.frontend.load_lightgbm_model(folder / "forest.txt")
    library = folder / "tl2cgen.so"
    tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={"parallel_comp": 8})
    predictor = tl2cgen.Predictor(library, nthread=1)

    def plain(rows: Any) -> Callable[[], Any]:
        return lambda: predictor.predict(tl2cgen.DMatrix(rows), pred_margin=True)

    raw = ctypes.CDLL(str(library)).predict
    row, out = np.zeros(COLUMNS), np.zeros(1)
    given = (ctypes.c_void_p(row.ctypes.data), ctypes.c_int(1), ctypes.c_void_p(out.ctypes.data))

    def single(rows: Any) -> Callable[[], Any]:
        row[...] = rows[0]
        return lambda: raw(*given)

    return [Version("tl2cgen", plain, plain), Version("tl2cgen, raw", single)]


def lleaves_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """Code of LLVM by lleaves."""
    import lleaves

    booster.save_model(folder / "forest.txt")
    model = lleaves.Model(model_file=folder / "forest.txt")
    model.compile(raw_score=True)

    def plain(rows: Any) -> Callable[[], Any]:
        return lambda: model.predict(rows, n_jobs=1)

    raw = model._c_entry_func
    row, out = np.zeros(COLUMNS), np.zeros(1)
    double = ctypes.POINTER(ctypes.c_double)
    given = (row.ctypes.data_as(double), out.ctypes.data_as(double), 0, 1)

    def single(rows: Any) -> Callable[[], Any]:
        row[...] = rows[0]
        return lambda: raw(*given)

    return [Version("lleaves", plain, plain), Version("lleaves, raw", single)]


def timber_versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> list[Version]:
    """C99 by timber-compiler."""
    from timber.runtime.predictor import TimberPredictor

    booster.save_model(folder / "forest.txt")
    made = folder / "timber"
    subprocess.run(
        ["timber", "compile", "--model", folder / "forest.txt", "--out", made],
        check=True,
        capture_output=True,
    )
    subprocess.run(["make", "-C", made], check=True, capture_output=True)
    library = next(made.glob("*.so"))
    trees = json.loads((made / "audit_report.json").read_text()).get("n_trees", booster.num_trees())
    predictor = TimberPredictor(library, COLUMNS, 1, trees)

    def single(rows: Any) -> Callable[[], Any]:
        given = rows[0].astype(np.float32)
        return lambda: predictor.predict_single(given)

    def batch(rows: Any) -> Callable[[], Any]:
        given = rows.astype(np.float32)
        return lambda: predictor.predict(given)

    return [Version("timber", single, batch)]


MAKERS = (
    hasten_versions,
    lightgbm_versions,
    onnxruntime_versions,
    tl2cgen_versions,
    lleaves_versions,
    timber_versions,
)


def versions(booster: Any, folder: Path, stack: contextlib.ExitStack) -> Iterator[Version]:
    """Yield what is installed and works; say what doesn't."""
    for make in MAKERS:
        place = folder / make.__name__
        place.mkdir()
        try:
            yield from make(booster, place, stack)
        except Exception as error:  # a rival that can't be installed or compiled here
            print(f"{make.__name__}: left out, {type(error).__name__}: {str(error)[:150]}")


def measure(every: list[Version], rows: Any, seconds: float) -> None:
    """Time all versions by turns, and print them."""
    singles = [one for one in every if one.single]
    best = {one.name: np.full(len(rows), np.inf) for one in singles}
    done = {one.name: np.zeros(len(rows), int) for one in singles}
    end = time.perf_counter() + seconds
    start = 0
    while time.perf_counter() < end or min(count.min() for count in done.values()) < 2:
        block = range(start, start + 256)
        for version in random.sample(singles, len(singles)):
            assert version.single
            for place in block:
                call = version.single(rows[place : place + 1])
                began = time.perf_counter_ns()
                call()
                took = time.perf_counter_ns() - began
                best[version.name][place] = min(best[version.name][place], took)
                done[version.name][place] += 1
        start = (start + 256) % len(rows)
    print(f"{'one row, us':28}{'p50':>9}{'p99':>9}{'over hasten, bind':>20}")
    own = np.median(best[every[0].name])
    for name, took in best.items():
        p50, p99 = np.median(took), np.quantile(took, 0.99)
        print(f"{name:28}{p50 / 1e3:9.2f}{p99 / 1e3:9.2f}{p50 / own:20.1f}")
    print(f"{'batch, us a row':28}" + "".join(f"{size:>9}" for size in BATCHES))
    for version in every:
        if version.batch:
            found = [batch_us(version, rows, size, seconds / 60) for size in BATCHES]
            print(f"{version.name:28}" + "".join(f"{one:9.3f}" for one in found), flush=True)


def batch_us(version: Version, rows: Any, size: int, seconds: float) -> float:
    """Return the microseconds that a row of a batch takes, in the best round over all rows."""
    assert version.batch
    calls = [version.batch(rows[start : start + size]) for start in range(0, ROWS, size)]
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for place, call in enumerate(calls):
            began = time.perf_counter_ns()
            call()
            best[place] = min(best[place], time.perf_counter_ns() - began)
        rounds += 1
    return float(np.median(best)) / size / 1e3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each forest's rows")
    parser.add_argument("--only", choices=FORESTS, help="one forest")
    asked = parser.parse_args()
    for name, size in FORESTS.items():
        if asked.only not in (None, name):
            continue
        booster, rows = trained(size)
        print(f"\n{name}: {size}")
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            measure(list(versions(booster, Path(folder), stack)), rows, asked.seconds)


if __name__ == "__main__":
    main()
