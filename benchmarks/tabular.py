"""Models for rows as hasten compiles them, beside what else answers from them, in one run.

    pip install lightgbm xgboost catboost onnxmltools treelite tl2cgen 'llvmlite<0.45' lleaves timber-compiler
    python benchmarks/tabular.py [--seconds 20] [--only NAME ...]

Every version gives the probability of the second class, from float64 rows, in one thread, and is first compared with
the library's own answers. hasten's is a bundle without a search: the library's model as its frontend exports it,
compiled, asked by `bind` and by the loaded bundle's call. Every row differs from the one before: a row that is
repeated flatters trees 1.7 to 3 times, since the processor learns its branches. A round asks each version for a block
of rows, in an order drawn anew; p50 and p99 are over all calls, ratios are of a round's medians, with the range of
95% of the rounds. What a caller can prepare once is not timed: rows as float32 for ONNX Runtime and timber. A matrix
that a library wants for each request is. CatBoost's own categories come as whole numbers in lists, and reading those
is timed, except for ONNX Runtime, which gets their hashes. "raw" is a library's C function called through ctypes with cached pointers,
which no documentation offers. What isn't installed is said so.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from unsearched import unsearched

import hasten
from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.tabular.base import Tabular, described
from hasten.inputs.pipeline.row_reader import RowReader

Rows = npt.NDArray[np.float64]
Prepared = tuple[Callable[[], Any], Callable[[Any], Any]]
"""The call that is timed, and the function that reads the second class's probabilities from what it returned."""
COLUMNS, TRAINED, ROWS, BLOCK = 30, 20_000, 8192, 256
CATEGORIES = list(range(COLUMNS - 3, COLUMNS))
"""Columns that hold categories in a case that has them."""
BATCHES = (16, 256, 4096)
LEAST_ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        library: Name of its library.
        package: Name of the package that is imported.
        train: Trains it on rows and classes.
        predict: Returns, for a model, the documented call for rows.
        odd: Whether a tenth of the values is missing, and the last three columns hold categories.
        lists: Whether rows come as lists whose categories are whole numbers, as CatBoost wants them.
    """

    library: str
    package: str
    train: Callable[[Rows, Any], Any]
    predict: Callable[[Any], Callable[[Rows], Any]]
    odd: bool = False
    lists: bool = False


@dataclass(frozen=True)
class Version:
    """One way to answer.

    Attributes:
        name: Name of the library, and of the way in which it is called.
        prepare: Makes the call for some rows.
        batch: Whether it takes more than one row.
        rounded: Whether it computes in float32.
    """

    name: str
    prepare: Callable[[Rows], Prepared]
    batch: bool = True
    rounded: bool = False


def lightgbm(
    rows: Rows, classes: Any, *, trees: int, categories: Sequence[int] = (), **sizes: Any
) -> Any:
    """Train a model of LightGBM."""
    import lightgbm

    settings = {"objective": "binary", "verbose": -1, "num_threads": 2, "seed": 0, **sizes}
    data = lightgbm.Dataset(rows, classes, categorical_feature=list(categories))
    return lightgbm.train(settings, data, trees)


def xgboost(rows: Rows, classes: Any) -> Any:
    """Train a model of XGBoost."""
    import xgboost

    trees = xgboost.XGBClassifier(n_estimators=200, max_depth=6, n_jobs=1, random_state=0)
    return trees.fit(rows, classes)


def catboost(rows: Rows, classes: Any, *, categories: Sequence[int] = ()) -> Any:
    """Train a model of CatBoost."""
    import catboost

    trees = catboost.CatBoostClassifier(
        iterations=200, depth=6, verbose=0, random_seed=0, allow_writing_files=False
    )
    if categories:
        return trees.fit(as_lists(rows), classes, cat_features=list(categories))
    return trees.fit(rows, classes)


def as_lists(rows: Rows) -> list[list[float | int]]:
    """Return rows whose categories are whole numbers, -1 for a missing one."""
    found = rows.tolist()
    for row in found:
        for place in CATEGORIES:
            row[place] = int(row[place]) if row[place] == row[place] else -1
    return found


def forest(rows: Rows, classes: Any) -> Any:
    """Train a pipeline of scikit-learn: a scaler and a forest."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trees = RandomForestClassifier(100, max_depth=8, n_jobs=1, random_state=0)
    return make_pipeline(StandardScaler(), trees).fit(rows, classes)


def of_lightgbm(model: Any) -> Callable[[Rows], Any]:
    """LightGBM's own call."""
    return functools.partial(model.predict, num_threads=1)


def of_xgboost(model: Any) -> Callable[[Rows], Any]:
    """XGBoost's call without a matrix."""
    booster = model.get_booster()
    booster.set_param({"nthread": 1})
    return lambda rows: booster.inplace_predict(rows)


def of_catboost(model: Any) -> Callable[[Rows], Any]:
    """CatBoost's own call."""
    return lambda rows: model.predict_proba(rows, thread_count=1)[:, 1]


def of_sklearn(model: Any) -> Callable[[Rows], Any]:
    """scikit-learn's own call."""
    return lambda rows: model.predict_proba(rows)[:, 1]


def _of_lightgbm(odd: bool = False, **sizes: int) -> Case:
    if odd:
        train = functools.partial(lightgbm, categories=CATEGORIES, **sizes)
    else:
        train = functools.partial(lightgbm, **sizes)
    return Case("LightGBM", "lightgbm", train, of_lightgbm, odd)


CASES = {
    "50 of depth 4": _of_lightgbm(trees=50, num_leaves=16, max_depth=4),
    "200x31": _of_lightgbm(trees=200, num_leaves=31),
    "1000x63": _of_lightgbm(trees=1000, num_leaves=63),
    "500 of depth 10": _of_lightgbm(trees=500, num_leaves=1024, max_depth=10, min_data_in_leaf=5),
    "200x31, missing values and categories": _of_lightgbm(odd=True, trees=200, num_leaves=31),
    "XGBoost": Case("XGBoost", "xgboost", xgboost, of_xgboost),
    "CatBoost": Case("CatBoost", "catboost", catboost, of_catboost),
    "CatBoost, its own categories": Case(
        *("CatBoost", "catboost", functools.partial(catboost, categories=CATEGORIES)),
        *(of_catboost, True, True),
    ),
    "scikit-learn": Case("scikit-learn", "sklearn", forest, of_sklearn),
}


def table(odd: bool) -> tuple[Rows, Any]:
    """Return rows that float32 can hold, and their classes: noise with a pattern."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((TRAINED, COLUMNS)).astype(np.float32)
    score = rows @ rng.standard_normal(COLUMNS) + 2 * np.sin(2 * rows[:, 0] * rows[:, 1])
    score += rows[:, 2] ** 2 - 2 * rows[:, 3] * rows[:, 4] + 0.5 * rng.standard_normal(TRAINED)
    if odd:
        words = rng.integers(0, 12, (TRAINED, len(CATEGORIES)))
        score += 3 * np.sin(words).sum(axis=1)
        rows[:, CATEGORIES] = words
        rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows.astype(np.float64), (score > np.median(score)).astype(int)


# -- versions: each maker yields its ways to answer from a model


def bundle(found: Tabular, folder: Path) -> Path:
    """Write a bundle of a model on the engine `compiled`, without a search."""
    target, engine = Target.host().with_threads(1), CompiledC()
    (folder / "built").mkdir()
    artifact = engine.build(found.export(folder), target, folder / "built")
    return unsearched(folder / "model.hasten", engine, artifact, target, pipeline=found.pipeline)


def of_hasten(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield the calls of a loaded bundle."""
    found = described(model)
    path = bundle(found, folder)
    began = time.perf_counter()
    fast = stack.enter_context(hasten.load(path, cache=folder / "cache", sessions=1))
    print(f"hasten compiled and opened it in {time.perf_counter() - began:.1f} s")

    @functools.cache
    def bound(size: int) -> tuple[Any, Any, Any]:
        given = np.zeros((size, COLUMNS), found.row.dtype)
        out = np.zeros((size, found.width), found.dtype)
        return given, out, fast.bind(given, out)

    reader = RowReader(found.row)

    def bind(rows: Rows) -> Prepared:
        given, out, call = bound(len(rows))
        if case.lists:
            lists = as_lists(rows)

            def read() -> None:
                for place, row in enumerate(lists):
                    reader.read(row, given, place)
                call()

            return read, lambda _: out[:, 1]
        given[...] = rows
        return call, lambda _: out[:, 1]

    def plain(rows: Rows) -> Prepared:
        if case.lists:
            lists = as_lists(rows)
            return lambda: fast(reader.read_all(lists)), lambda one: one["probabilities"][:, 1]
        given = rows.astype(found.row.dtype)
        return lambda: fast(given), lambda answer: answer["probabilities"][:, 1]

    yield Version("hasten, bind", bind)
    yield Version("hasten, load(...)(rows)", plain)


def of_library(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield the library's own documented call."""
    predict = case.predict(model)

    def plain(rows: Rows) -> Prepared:
        given: Any = as_lists(rows) if case.lists else rows
        return lambda: predict(given), lambda answer: answer

    yield Version(f"{case.library}, predict", plain)


def of_lightgbm_raw(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield LightGBM's call for single rows in C."""
    if case.library != "LightGBM":
        return
    import lightgbm.basic as basic

    fast = ctypes.c_void_p()
    basic._safe_call(
        basic._LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
            model._handle,
            0,
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

    def single(rows: Rows) -> Prepared:
        row[...] = rows[0]
        return lambda: function(*given, taken), lambda _: out

    yield Version("LightGBM, raw", single, batch=False)


def _in_onnxruntime(
    name: str, path: Path, as_given: Callable[[Rows], Any], rounded: bool
) -> Iterator[Version]:
    """Yield ONNX Runtime's two calls of a model's file, whose last output are probabilities."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = (one.name for one in session.get_inputs())
    names = [one.name for one in session.get_outputs()]

    def plain(rows: Rows) -> Prepared:
        request = {given: as_given(rows)}
        return lambda: session.run(names[-1:], request), lambda got: got[0][:, 1]

    def binding(rows: Rows) -> Prepared:
        made, held = session.io_binding(), as_given(rows)
        made.bind_cpu_input(given, held)
        for one in names:
            made.bind_output(one)
        return (
            lambda: (session.run_with_iobinding(made), held),
            lambda _: made.copy_outputs_to_cpu()[-1][:, 1],
        )

    yield Version(f"ONNX Runtime, run{name}", plain, rounded=rounded)
    yield Version(f"ONNX Runtime, IO binding{name}", binding, rounded=rounded)


def of_onnxruntime(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield ONNX Runtime on hasten's own export."""
    found = described(model)
    reader = RowReader(found.row)

    def as_given(rows: Rows) -> Any:
        return reader.read_all(as_lists(rows)) if case.lists else rows.astype(found.row.dtype)

    yield from _in_onnxruntime("", found.export(folder).path, as_given, False)


def of_onnxmltools(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield ONNX Runtime on what onnxmltools writes of a model of LightGBM, which is float32."""
    if case.library != "LightGBM" or case.odd:
        return
    import onnx
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [("x", FloatTensorType([None, COLUMNS]))]
    made = onnxmltools.convert_lightgbm(model, initial_types=shape, zipmap=False)
    for output in made.graph.output:  # it says that there is one row
        output.type.tensor_type.ClearField("shape")
    onnx.save(made, folder / "model.onnx")
    path = folder / "model.onnx"
    yield from _in_onnxruntime(" of onnxmltools", path, lambda rows: rows.astype("f4"), True)


def of_tl2cgen(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield treelite's C, compiled by gcc."""
    if case.library not in ("LightGBM", "XGBoost"):
        return
    import tl2cgen
    import treelite

    if case.library == "LightGBM":
        trees = treelite.frontend.from_lightgbm(model)
    else:
        trees = treelite.frontend.from_xgboost(model.get_booster())
    kind = np.float32 if case.library == "XGBoost" else np.float64
    library = folder / "tl2cgen.so"
    tl2cgen.export_lib(trees, toolchain="gcc", libpath=library, params={"parallel_comp": 8})
    predictor = tl2cgen.Predictor(library, nthread=1)

    def plain(rows: Rows) -> Prepared:
        given = rows.astype(kind)
        return (
            lambda: predictor.predict(tl2cgen.DMatrix(given)),
            lambda got: np.reshape(got, (len(rows), -1))[:, -1],
        )

    yield Version("tl2cgen", plain)
    if case.odd or case.library == "XGBoost":  # whose raw call wants a union of an int and a number
        return
    raw = ctypes.CDLL(str(library)).predict
    row, out = np.zeros(COLUMNS), np.zeros(1)
    pointers = (ctypes.c_void_p(row.ctypes.data), ctypes.c_int(0), ctypes.c_void_p(out.ctypes.data))

    def single(rows: Rows) -> Prepared:
        row[...], out[...] = rows[0], 0  # it adds to what is there
        return lambda: raw(*pointers), lambda _: out

    yield Version("tl2cgen, raw", single, batch=False)


def of_lleaves(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield code of LLVM by lleaves."""
    if case.library != "LightGBM":
        return
    import lleaves

    model.save_model(folder / "forest.txt")
    made = lleaves.Model(model_file=folder / "forest.txt")
    made.compile()
    yield Version(
        "lleaves", lambda rows: (lambda: made.predict(rows, n_jobs=1), lambda answer: answer)
    )
    raw = made._c_entry_func
    row, out = np.zeros(COLUMNS), np.zeros(1)
    double = ctypes.POINTER(ctypes.c_double)
    pointers = (row.ctypes.data_as(double), out.ctypes.data_as(double), 0, 1)

    def single(rows: Rows) -> Prepared:
        row[...] = rows[0]
        return lambda: raw(*pointers), lambda _: out

    yield Version("lleaves, raw", single, batch=False)


def of_timber(
    case: Case, model: Any, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield C99 by timber-compiler."""
    if case.library != "LightGBM":
        return
    from timber.runtime.predictor import TimberPredictor

    model.save_model(folder / "forest.txt")
    made = folder / "timber"
    compiling = ["timber", "compile", "--model", folder / "forest.txt", "--out", made]
    for command in (compiling, ["make", "-C", made]):
        subprocess.run(command, check=True, capture_output=True)
    trees = json.loads((made / "audit_report.json").read_text()).get("n_trees", model.num_trees())
    predictor = TimberPredictor(next(made.glob("*.so")), COLUMNS, 1, trees)

    def plain(rows: Rows) -> Prepared:
        given = rows.astype(np.float32)
        if len(given) == 1:
            only = given[0]
            return lambda: predictor.predict_single(only), np.ravel
        return lambda: predictor.predict(given), np.ravel

    yield Version("timber", plain, rounded=True)


MAKERS = (
    of_hasten,
    of_library,
    of_lightgbm_raw,
    of_onnxruntime,
    of_onnxmltools,
    of_tl2cgen,
    of_lleaves,
    of_timber,
)


def answers(version: Version, rows: Rows) -> Rows:
    """Return a version's answers to rows, asked as they will be timed."""
    if version.batch:
        call, read = version.prepare(rows)
        return np.array(read(call()), np.float64)
    found = []
    for place in range(len(rows)):
        call, read = version.prepare(rows[place : place + 1])
        found.append(float(np.ravel(read(call()))[0]))
    return np.array(found)


def working(
    case: Case, model: Any, rows: Rows, folder: Path, stack: contextlib.ExitStack
) -> Iterator[Version]:
    """Yield the versions that are installed and work; say which don't, and which answer otherwise than the library."""
    own: Any = as_lists(rows) if case.lists else rows
    wanted = np.asarray(case.predict(model)(own), np.float64)
    for make in MAKERS:
        place = folder / make.__name__
        place.mkdir()
        try:
            for version in make(case, model, place, stack):
                got = answers(version, rows)
                close = np.isclose(got, wanted, rtol=1e-4 if version.rounded else 1e-6, atol=1e-6)
                missed = float(np.mean(~close))
                if missed and make is of_hasten:
                    raise AssertionError(f"{version.name} answers {missed:.2%} of rows otherwise")
                if missed:
                    print(
                        f"{version.name}: answers {missed:.2%} of rows otherwise; it's timed all the same"
                    )
                yield version
        except Exception as error:  # a rival that can't be installed or compiled here
            print(f"{make.__name__}: left out, {type(error).__name__}: {str(error)[:150]}")
            if make is of_hasten:
                raise


# -- measuring


def block_us(version: Version, rows: Rows, size: int) -> npt.NDArray[np.float64]:
    """Return the microseconds of each call for the next `size` rows."""
    taken = []
    for start in range(0, len(rows) - size + 1, size):
        call, _ = version.prepare(rows[start : start + size])
        began = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - began)
    return np.array(taken) / 1e3


def in_turns(
    versions: Sequence[Version], rows: Rows, size: int, seconds: float
) -> dict[str, list[npt.NDArray[np.float64]]]:
    """Return each version's times in microseconds a call, one array for each round."""
    times: dict[str, list[npt.NDArray[np.float64]]] = {one.name: [] for one in versions}
    block = max(size, BLOCK)
    end = time.perf_counter() + seconds
    start, rounds = 0, 0
    while rounds <= LEAST_ROUNDS or time.perf_counter() < end:
        for version in random.sample(versions, len(versions)):
            found = block_us(version, rows[start : start + block], size)
            if rounds:  # the first one warms up
                times[version.name].append(found)
        start = (start + block) % (len(rows) - block + 1)
        rounds += 1
    return times


def told(size: int, times: dict[str, list[npt.NDArray[np.float64]]]) -> Iterator[str]:
    """Yield the lines of a table; the first version is what the others are compared with."""
    clock = float(np.median(np.diff([time.perf_counter_ns() for _ in range(4001)]))) / 1e3
    medians = {name: np.median(found, axis=1) - clock for name, found in times.items()}
    own = medians[next(iter(times))]
    yield f"{f'{size} row' + 's' * (size > 1) + ', us a call':38}{'p50':>10}{'p99':>10}   times hasten's"
    for name, found in times.items():
        middle, late = np.quantile(np.concatenate(found), [0.5, 0.99]) - clock
        low, ratio, high = np.quantile(medians[name] / own, [0.025, 0.5, 0.975])
        yield f"{name:38}{middle:10.2f}{late:10.2f}{ratio:9.2f} ({low:.2f} to {high:.2f})"


def compare(name: str, case: Case, seconds: float) -> None:
    """Print the tables of one model."""
    print(f"\n== {name}")
    if importlib.util.find_spec(case.package) is None:
        print(f"left out: {case.package} isn't installed")
        return
    rows, classes = table(case.odd)
    model = case.train(rows, classes)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        versions = list(working(case, model, rows[:ROWS], Path(folder), stack))
        for size in (1, *BATCHES):
            asked = [one for one in versions if one.batch or size == 1]
            share = seconds if size == 1 else seconds / len(BATCHES)
            print("\n".join(told(size, in_turns(asked, rows[:ROWS], size, share))), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each model's rows")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), help="models")
    asked = parser.parse_args()
    for name in asked.only:
        compare(name, CASES[name], asked.seconds)


if __name__ == "__main__":
    main()
