"""Calls bound to arrays and to rows: what they answer, what is refused, threads, and the bundle's end."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.bundles import built, stated
from tests.support.servers import ONE_THREAD, bundle_of
from tests.support.waiting import until

import hasten
from hasten.bundle import Loaded, load, write
from hasten.bundle.spreading import Spread
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.reference import Reference
from hasten.errors import CandidateError, InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import ToLayout
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.testing import models

COLUMNS = tuple(f"c{number}" for number in range(16))
ROWS = np.random.default_rng(0).standard_normal((40, 16), np.float32)
ENGINES: dict[str, Engine] = {"compiled": CompiledC(), "onnxruntime": ONE_THREAD}
SCORED = Pipeline((Row(COLUMNS),), (Threshold(0.4, position=1, activation="softmax"),))


@pytest.fixture(scope="module", params=list(ENGINES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear classifier (x: float32[batch, 16]) of rows, for an engine with bound calls and one without."""
    folder = tmp_path_factory.mktemp(request.param)
    model = models.linear_classifier(folder)
    return bundle_of(folder, model, engine=ENGINES[request.param], pipeline=SCORED)


@pytest.fixture
def loaded(bundle: Path) -> Iterator[Loaded]:
    """The open bundle."""
    with load(bundle, cache=bundle.parent) as opened:
        yield opened


def arrays() -> tuple[Any, Any]:
    """Return an input and an output of one row."""
    return np.zeros((1, 16), np.float32), np.zeros((1, 4), np.float32)


def test_a_bound_call_answers_from_and_to_the_same_arrays(loaded: Loaded) -> None:
    row, out = arrays()
    calls: list[Callable[[], None]] = [
        loaded.bind(row, out),
        loaded.bind(x=row, logits=out),
        loaded.bind(row, logits=out),
        loaded.bind({"x": row}, {"logits": out}),
    ]
    for place, call in enumerate(calls * 2):
        row[:] = ROWS[place]
        call()
        np.testing.assert_array_equal(out, loaded(ROWS[place : place + 1])["logits"])
    many = np.zeros((40, 4), np.float32)
    loaded.bind(ROWS, many)()
    np.testing.assert_allclose(many, loaded(ROWS)["logits"], rtol=1e-6)


def test_two_bound_calls_keep_apart(loaded: Loaded) -> None:
    (row, out), (other, result) = arrays(), arrays()
    first, second = loaded.bind(row, out), loaded.bind(other, result)
    row[:], other[:] = ROWS[0], ROWS[1]
    first()
    second()
    np.testing.assert_array_equal(out, loaded(ROWS[:1])["logits"])
    np.testing.assert_array_equal(result, loaded(ROWS[1:2])["logits"])


WRITTEN = np.zeros((1, 20), np.float32)
FIXED = np.zeros((1, 4), np.float32)
FIXED.flags.writeable = False


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[[0.0] * 16], None], "input 'x' must be a numpy array to be bound: got list"),
        (
            [np.zeros((1, 16)), None],
            "input 'x': the model takes x: float32[batch, 16]; got float64[1, 16]",
        ),
        (
            [np.zeros(16, np.float32), None],
            "input 'x': the model takes x: float32[batch, 16]; got float32[16]",
        ),
        (
            [np.zeros((1, 32), np.float32)[:, ::2], None],
            "input 'x' isn't contiguous and aligned: give an array that numpy made, or bind "
            "np.ascontiguousarray of it and fill that copy",
        ),
        (
            [None, np.zeros((2, 4), np.float32)],
            "output 'logits': the model's output is logits: float32[1, 4]; got float32[2, 4]",
        ),
        (
            [None, np.zeros((1, 4))],
            "output 'logits': the model's output is logits: float32[1, 4]; got float64[1, 4]",
        ),
        (
            [None, FIXED],
            "output 'logits' can't be written to: give a writable array, such as one of np.zeros",
        ),
        (
            [WRITTEN[:, :16], WRITTEN[:, 12:16]],
            "output 'logits' overlaps 'x' in memory: give each an array of its own",
        ),
        (
            [None],
            "bind takes an array for each input and each output, x, logits; got x",
        ),
        ([None, None, 1], "bind takes 2 arrays, x, logits; got 3"),
        (
            [{"x": ROWS[:1]}],
            "bind takes arrays, or one mapping of inputs and one of outputs: got a mixture of "
            "the two",
        ),
        (
            [{"y": ROWS[:1]}, {"logits": FIXED}],
            "the model takes the inputs x; got y",
        ),
        (
            [{"x": ROWS[:1]}, {"scores": FIXED}],
            "the model's outputs are logits; got scores to write to",
        ),
    ],
)
def test_an_array_that_does_not_fit_gets_one_line(
    loaded: Loaded, given: list[Any], words: str
) -> None:
    usual = arrays()
    filled = [one if one is not None else usual[place] for place, one in enumerate(given)]
    with pytest.raises(InputError) as error:
        loaded.bind(*filled)
    assert str(error.value) == words


def unnamed(model: Path) -> Path:
    """Take the names of the axes of rows out of a file, as skl2onnx writes it."""
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    onnx.save(proto, model)
    return model


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_file_whose_axis_of_rows_has_no_name_is_bound(engine: Engine, tmp_path: Path) -> None:
    model = unnamed(models.linear_classifier(tmp_path))
    bundle = bundle_of(tmp_path, model, engine=engine, pipeline=SCORED)
    with load(bundle, cache=tmp_path) as opened:
        for count in (1, 3):
            rows, out = ROWS[:count].copy(), np.zeros((count, 4), np.float32)
            opened.bind(rows, out)()
            np.testing.assert_array_equal(out, opened(rows)["logits"])
        given = dict(zip(COLUMNS, map(float, ROWS[0]), strict=True))
        assert opened.bind_row()(given) == opened.decide(given)
        with pytest.raises(InputError) as error:
            opened.bind(ROWS[:2], np.zeros((1, 4), np.float32))
        assert str(error.value).startswith(
            "output 'logits': the model's output is logits: float32[2"
        )


@pytest.mark.parametrize(
    ("shape", "body"), [([2, 4], "y = Concat <axis = 0> (z, z)"), ([1, 4], "y = Identity(z)")]
)
def test_an_answer_of_another_shape_than_the_bound_array_is_no_answer(
    shape: list[int], body: str, tmp_path: Path
) -> None:
    text = f"""m (float[batch, 16] x) => (float[batch, 4] y) {{
        all = ReduceSum <keepdims = 1> (x, zero)
        z = MatMul(all, w)
        {body} }}"""
    text = text.replace(" {\n", " <int64[1] zero = {0}> {\n", 1)
    model = models.write(tmp_path / "m.onnx", text, {"w": (16, 4)})
    with load(bundle_of(tmp_path, model)) as opened:
        bound = 3 if shape == [1, 4] else 1
        call = opened.bind(ROWS[:bound], np.zeros((bound, 4), np.float32))
        with pytest.raises(CandidateError) as error:
            call()
    assert str(error.value) == (
        f"output 'y' has the shape {shape}, and the array that is bound to it has {[bound, 4]}: its size doesn't "
        "follow from the inputs, so call the model instead"
    )


def test_an_array_given_twice_is_refused(loaded: Loaded) -> None:
    row, out = arrays()
    with pytest.raises(InputError) as error:
        loaded.bind(row, out, x=row)
    assert str(error.value) == "'x' is given twice, by position and by name"


def test_a_batch_that_the_model_does_not_take_is_not_bound(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path, batch=1)
    winner = built(tmp_path, model, CompiledC())
    write(tmp_path / "one.hasten", stated(winner, winner), {})
    with load(tmp_path / "one.hasten", cache=tmp_path) as opened:
        with pytest.raises(InputError) as error:
            opened.bind(np.zeros((2, 16), np.float32), np.zeros((2, 4), np.float32))
        assert str(error.value).startswith("input 'x': the model takes x: float32[1, 16]")


def test_a_bound_call_refuses_once_the_bundle_is_closed(bundle: Path) -> None:
    row, out = arrays()
    with load(bundle, cache=bundle.parent) as opened:
        call, decide = opened.bind(row, out), opened.bind_row()
        call()
        decide(ROWS[0])
    for late in (call, lambda: decide(ROWS[0])):
        with pytest.raises(CandidateError) as error:
            late()
        assert str(error.value) == "the bundle is closed: load it again"
    with pytest.raises(CandidateError):
        opened.bind(row, out)


def test_a_second_thread_in_a_bound_call_is_told_so(bundle: Path) -> None:
    rows = np.tile(ROWS, (8_000, 1))
    out = np.zeros((len(rows), 4), np.float32)
    said: list[str] = []
    with load(bundle, cache=bundle.parent) as opened:
        call = opened.bind(rows, out)
        begun = threading.Event()

        def ask() -> None:
            begun.set()
            while not said:
                call_or_note(call, said)

        def meanwhile() -> None:
            begun.wait()
            while not said:
                call_or_note(call, said)

        threads = [threading.Thread(target=each, daemon=True) for each in (ask, meanwhile)]
        for thread in threads:
            thread.start()
        until(lambda: bool(said))
        for thread in threads:
            thread.join()
    assert set(said) == {"another thread is running this call: bind one call for each thread"}


def call_or_note(call: Callable[[], None], said: list[str]) -> None:
    """Call, and note what is said instead."""
    try:
        call()
    except CandidateError as error:
        said.append(str(error))


def test_a_bundle_may_be_closed_while_a_bound_call_runs(bundle: Path) -> None:
    rows = np.tile(ROWS, (2_000, 1))
    out = np.zeros((len(rows), 4), np.float32)
    opened = load(bundle, cache=bundle.parent)
    call = opened.bind(rows, out)
    said: list[str] = []
    begun = threading.Event()

    def ask() -> None:
        while not said:
            call_or_note(call, said)
            begun.set()

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    opened.close()
    thread.join()
    assert said == ["the bundle is closed: load it again"]


def test_an_engine_of_its_own_form_is_bound_too(tmp_path: Path) -> None:
    winner = built(tmp_path, models.two_inputs(tmp_path), Reference())
    write(tmp_path / "two.hasten", stated(winner, winner), {})
    with load(tmp_path / "two.hasten") as opened:
        rng = np.random.default_rng(0)
        inputs = {
            spec.name: np.asarray(
                rng.integers(0, 3, [n if isinstance(n, int) else 1 for n in spec.shape])
            ).astype(spec.dtype)
            for spec in opened.inputs
        }
        expected = opened(inputs)
        outputs = {name: np.zeros_like(array) for name, array in expected.items()}
        opened.bind(*inputs.values(), *outputs.values())()
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs[name], array)


# -- rows


def forms(row: Any) -> list[Any]:
    """Return a row in each form that needs no other library."""
    named = dict(zip(COLUMNS, map(float, row), strict=True))
    return [named, tuple(named.values()), list(named.values()), row, str(named).replace("'", '"')]


def test_a_bound_row_is_decided_on_as_any_row(loaded: Loaded) -> None:
    decide = loaded.bind_row()
    for row in ROWS[:5]:
        for form in forms(row):
            assert decide(form) == loaded.decide(form) == loaded.decide(row)
    assert decide.row.tolist() == [ROWS[4].tolist()]
    with pytest.raises(InputError) as error:
        decide({"c0": 1})
    assert str(error.value) == "the row has no column 'c1'"
    assert decide(ROWS[0]) == loaded.decide(ROWS[0])


def test_a_bundle_without_steps_after_the_model_gives_its_outputs(tmp_path: Path) -> None:
    path = bundle_of(
        tmp_path,
        models.linear_classifier(tmp_path),
        engine=CompiledC(),
        pipeline=Pipeline((Row(COLUMNS),)),
    )
    with hasten.load(path, cache=tmp_path) as opened:
        decide = opened.bind_row()
        first, second = decide(ROWS[0]), decide(ROWS[1])
        np.testing.assert_array_equal(first["logits"], opened(ROWS[:1])["logits"][0])
        np.testing.assert_array_equal(second["logits"], opened(ROWS[1:2])["logits"][0])
        (again, _) = opened.decide_rows(ROWS[:2])
        np.testing.assert_array_equal(again["logits"], first["logits"])


def test_an_array_is_refused_where_its_rows_would_be(loaded: Loaded) -> None:
    for value, why in (
        (np.nan, "has no value"),
        (-np.inf, "isn't a number that float32 holds"),
    ):
        rows = ROWS[:3].copy()
        rows[2, 5] = value
        calls: list[Callable[[Any], Any]] = [
            loaded,
            lambda x: loaded(x=x),
            lambda x: loaded({"x": np.asfortranarray(x)}),
        ]
        for call in calls:
            for _ in range(2):  # a shape that was seen before takes a shorter way
                with pytest.raises(InputError) as error:
                    call(rows)
                assert str(error.value) == f"input 'x': row 2: the column 'c5' {why}"
            call(ROWS[:3])
        with pytest.raises(InputError) as error:
            loaded(rows[2:])
        assert str(error.value) == f"input 'x': the column 'c5' {why}"
    row, out = arrays()
    row[0, 5] = np.nan
    loaded.bind(row, out)()  # bound arrays are the caller's own to check
    assert np.isnan(out).all()


def test_a_pipeline_that_lets_nan_through_leaves_arrays_alone(tmp_path: Path) -> None:
    pipeline = Pipeline((Row(COLUMNS, "nan", required=COLUMNS[:1], infinite="allow"),), ())
    path = bundle_of(tmp_path, models.linear_classifier(tmp_path), pipeline=pipeline)
    rows = ROWS[:2].copy()
    rows[1, 5] = np.nan
    with load(path) as opened:
        assert np.isnan(opened(rows)["logits"][1]).all()
        rows[0, 0] = np.nan
        with pytest.raises(InputError, match=r"^input 'x': row 0: the column 'c0' has no value$"):
            opened(rows)


def test_many_rows_are_decided_on_as_each_alone(loaded: Loaded) -> None:
    expected = [loaded.decide(row) for row in ROWS]
    named = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in ROWS]
    for rows in (ROWS, list(ROWS), named, iter(named)):
        found = loaded.decide_rows(rows)
        assert [each["positive"] for each in found] == [each["positive"] for each in expected]
        scores, others = ([each["score"] for each in some] for some in (found, expected))
        np.testing.assert_allclose(scores, others, rtol=1e-6)
    with pytest.raises(InputError) as error:
        loaded.decide_rows([named[0], {"c0": 1}])
    assert str(error.value) == "row 1: the row has no column 'c1'"


def test_rows_of_another_pipeline_are_refused(tmp_path: Path) -> None:
    path = bundle_of(
        tmp_path, models.linear_classifier(tmp_path), pipeline=Pipeline((ToLayout(),), (TopK(),))
    )
    with load(path) as opened:
        for ask in (opened.bind_row, lambda: opened.decide_rows(ROWS)):
            with pytest.raises(InputError) as error:
                ask()
            assert str(error.value) == (
                "rows need a pipeline whose only step before the model is row; this one has to_layout: "
                "use decide"
            )


def test_a_large_batch_is_shared_out_and_answered_to_the_same_bits(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, models.linear_classifier(tmp_path), engine=CompiledC())
    rows = np.random.default_rng(1).standard_normal((4000, 16), np.float32)
    with load(path, cache=tmp_path, sessions=2) as opened:
        whole = opened(rows)["logits"]
        spread = Spread(opened._pool, 2)
        spread._row_ns[False] = 1e6
        shared = spread.run({"x": rows}, len(rows))["logits"]
        assert spread._threads is not None
        spread.close()
        np.testing.assert_array_equal(shared, whole)
        few = Spread(opened._pool, 2)
        few.run({"x": rows[:65]}, 65)
        assert few._threads is None


def test_no_more_threads_share_a_batch_than_load_was_told(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, models.linear_classifier(tmp_path), engine=CompiledC())
    with load(path, cache=tmp_path, threads=1) as opened:
        assert opened._spread.ways == 1
    with load(path, cache=tmp_path, sessions=1) as opened:
        assert opened._spread.ways == 1
    other = bundle_of(tmp_path, models.linear_classifier(tmp_path), "other")
    with load(other, cache=tmp_path) as opened:  # its rows aren't computed apart
        assert opened._spread.ways == 1
