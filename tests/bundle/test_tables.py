"""Numbers that a model looks up in tables: whatever the engine, a bundle answers those of rows and refuses others."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import forge
from tests.support.servers import ONE_THREAD, bundle_of

from hasten.bundle import Loaded, load, read
from hasten.bundle.packing.writer import pack
from hasten.core.lookups import Lookup
from hasten.core.sequences import Sequences
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError, IntegrityError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.testing import models

ENGINES: dict[str, Engine] = {
    "onnxruntime": ONE_THREAD,
    "openvino": OpenVino(threads=1),
    "compiled": CompiledC(),
}
IDS, WRONG = np.array([[0, 9, -1]]), np.array([[0, 10, 1]])
SAID = (
    "input 'ids' has the number 10, and the table that it looks up has 10 rows: give numbers from 0 to 9, as the "
    "model's own tokenizer or categories do"
)
ROW = {"income": 0.5, "branch": 2.0, "size": 1.0}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def tokens(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes int64[batch, 3], each a row of a table of 10."""
    folder = tmp_path_factory.mktemp("tokens")
    text = """tokens (int64[batch, 3] ids) => (float[batch, 4] logits) {
        rows = Gather(table, ids)
        row = ReduceMean <axes = [1], keepdims = 0> (rows)
        logits = MatMul(row, w) }"""
    model = models.write(folder / "tokens.onnx", text, {"table": (10, 8), "w": (8, 4)})
    return bundle_of(folder, model, engine=engine)


@pytest.fixture(scope="module")
def rows(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes rows of three columns, one of which is looked up in a table of 5."""
    folder = tmp_path_factory.mktemp("rows")
    text = """rows (float[batch, 3] x) => (float[batch, 2] scores) <int64 one = {1}> {
        column = Gather <axis = 1> (x, one)
        whole = Cast <to = 7> (column)
        of_branch = Gather(table, whole)
        of_all = MatMul(x, w)
        scores = Add(of_branch, of_all) }"""
    model = models.write(folder / "rows.onnx", text, {"table": (5, 2), "w": (3, 2)})
    return bundle_of(folder, model, engine=engine, pipeline=Pipeline((Row(tuple(ROW)),)))


@pytest.fixture
def loaded(tokens: Path) -> Iterator[Loaded]:
    with load(tokens, cache=tokens.parent) as opened:
        yield opened


def bound(loaded: Loaded, ids: np.ndarray) -> Any:
    given, out = np.zeros((1, 3), np.int64), np.zeros((1, 4), np.float32)
    call = loaded.bind(given, out)
    given[...] = ids
    call()
    return {"logits": out}


CALLS: dict[str, Callable[[Loaded, np.ndarray], Any]] = {
    "a call": lambda loaded, ids: loaded(ids),
    "a list": lambda loaded, ids: loaded(ids.tolist()),
    "by name": lambda loaded, ids: loaded(ids=ids),
    "a task": lambda loaded, ids: asyncio.run(loaded.answer(ids)),
    "run": lambda loaded, ids: loaded.run({"ids": ids}),
    "bind": bound,
}


@pytest.mark.parametrize("way", CALLS)
def test_each_way_refuses_a_number_beyond_the_table(loaded: Loaded, way: str) -> None:
    call = CALLS[way]
    before = call(loaded, IDS)["logits"].copy()  # its shape is known from now on
    with pytest.raises(InputError) as error:
        call(loaded, WRONG)
    assert str(error.value) == SAID
    np.testing.assert_array_equal(call(loaded, IDS)["logits"], before)
    from_the_begin = call(loaded, np.array([[0, 9, 9]]))["logits"]
    np.testing.assert_allclose(before, from_the_begin, rtol=1e-5)


def test_a_large_batch_is_refused_for_one_number(loaded: Loaded) -> None:
    many = np.repeat(IDS, 200, axis=0)
    assert loaded(many)["logits"].shape == (200, 4)
    many[150, 1] = -11
    with pytest.raises(InputError) as error:
        loaded(many)
    assert str(error.value) == SAID.replace("number 10,", "number -11,")


def test_the_exact_model_refuses_them_too(tokens: Path) -> None:
    with load(tokens, which="exact", cache=tokens.parent) as loaded:
        with pytest.raises(InputError) as error:
            loaded(WRONG)
    assert str(error.value) == SAID


def test_a_packed_bundle_refuses_them_too(tokens: Path, tmp_path: Path) -> None:
    packed = tmp_path / "tokens.hasten"
    pack(tokens, packed)
    with load(packed, cache=tokens.parent) as loaded:
        loaded(IDS)
        with pytest.raises(InputError) as error:
            loaded(WRONG)
    assert str(error.value) == SAID


def test_a_table_that_columns_share_has_limits_of_each_column(
    engine: Engine, tmp_path: Path
) -> None:
    text = """columns (int64[batch, 3] ids) => (float[batch, 4] logits) <int64[3] begins = {0, 4, 7}> {
        numbers = Add(ids, begins)
        rows = Gather(table, numbers)
        row = ReduceMean <axes = [1], keepdims = 0> (rows)
        logits = MatMul(row, w) }"""
    model = models.write(tmp_path / "columns.onnx", text, {"table": (10, 8), "w": (8, 4)})
    with load(bundle_of(tmp_path, model, engine=engine), cache=tmp_path) as loaded:
        assert np.isfinite(loaded(np.array([[9, 5, 2]]))["logits"]).all()
        for place, number in ((0, 10), (1, 6), (2, 3), (0, -11), (1, -15), (2, -18)):
            ids = np.zeros((1, 3), np.int64)
            ids[0, place] = number
            with pytest.raises(InputError) as error:
                loaded(ids)
            said = "no such row, after what the model adds" if place else "10 rows"
            assert str(error.value) == (
                f"input 'ids' has the number {number}, and the table that it looks up has {said}: give numbers from 0 "
                f"to {9 - (0, 4, 7)[place]}, as the model's own tokenizer or categories do"
            )


def test_rows_with_a_number_beyond_their_columns_table_are_refused(rows: Path) -> None:
    with load(rows, cache=rows.parent) as loaded:
        once = loaded.bind_row()
        right = loaded.decide(ROW)

        def several(row: Any) -> list[Any]:
            return loaded.decide_rows([ROW, row])

        for call in (loaded.decide, once, several):
            for number in (5.0, -6.0, 1e9):
                with pytest.raises(InputError) as error:
                    call({**ROW, "branch": number})
                assert "and the table that it looks up has 5 rows: give" in str(error.value)
            call({**ROW, "income": 1e9, "size": -1e9})  # these columns have no table
        for answer in (once(ROW), *loaded.decide_rows([ROW])):
            np.testing.assert_allclose(answer["scores"], right["scores"], rtol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "compiled"], indirect=True)
def test_a_step_that_is_refused_leaves_the_states(engine: Engine, tmp_path: Path) -> None:
    text = """steps (int64[batch, 3] ids, float[batch, 4] h) => (float[batch, 4] y, float[batch, 4] h_out) {
        rows = Gather(table, ids)
        row = ReduceMean <axes = [1], keepdims = 0> (rows)
        h_out = Add(row, h)
        y = MatMul(h_out, w) }"""
    model = models.write(tmp_path / "steps.onnx", text, {"table": (10, 4), "w": (4, 4)})
    sequences = Sequences((("h", "h_out"),))
    with load(bundle_of(tmp_path, model, engine=engine, sequences=sequences)) as loaded:
        session = loaded.session()
        for _ in range(3):  # later steps are bound calls
            session(IDS)
            states = session.states
            with pytest.raises(InputError) as error:
                session(WRONG)
            assert str(error.value) == SAID
            np.testing.assert_array_equal(session.states["h"], states["h"])


# -- the manifest


def test_a_bundle_of_an_earlier_version_loads(tokens: Path, tmp_path: Path) -> None:
    old = bundle_of(tmp_path, tokens.parent / "tokens.onnx")
    forge(old, lambda record: record.pop("lookups"))
    with load(old) as loaded:
        assert loaded(IDS)["logits"].shape == (1, 4)


def test_tables_that_do_not_fit_the_inputs_are_refused(tokens: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, tokens.parent / "tokens.onnx")
    assert read(bundle).lookups == (Lookup("ids", (1, 1), (10,)),)
    for wrong in (
        {"input": "ids", "shape": [1], "rows": [10]},
        {"input": "ids", "shape": [1, 1], "rows": [-1]},
        {"input": "ids", "shape": [1, 1], "rows": [2**62]},
        {"input": "ids", "shape": [1, 1], "rows": [10], "first": [1]},
        {"input": "ids", "shape": [1, 1], "rows": [10, 10]},
        {"input": "ids", "shape": [1 << 40, 1 << 40], "rows": [10]},
        {"input": "other", "shape": [1, 1], "rows": [10]},
    ):
        forge(bundle, partial(dict.update, lookups=[wrong]))
        with pytest.raises(IntegrityError) as error:
            load(bundle)
        assert str(error.value) == (
            f"{bundle}: the manifest is damaged: it states rows of tables of the input {wrong['input']!r}, which "
            "don't fit it"
        )
