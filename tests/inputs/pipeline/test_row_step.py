"""Rows of a table, in each form that they come in, and what is said of a row that can't be read."""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.servers import ServerThread, bundle_of, place_of

import hasten
from hasten.core.records import from_record, to_record
from hasten.errors import InputError, IntegrityError
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.city_hash import word_hash
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.testing import models

NAMES = ("age", "income", "years")
ROW = Row(NAMES)
HOUSED = Row(("age", "housing"), words=(("housing", ("rent", "own")),))
HASHED = Row(("age", "town"), "nan", dtype="float64", hashed=("town",))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(NAMES), inner),
)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, unique=True), st.data()
)
def test_every_form_of_a_row_gives_its_numbers_in_the_order_of_the_columns(
    names: list[str], data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(FLOATS, min_size=len(names), max_size=len(names)))
    row = dict(zip(names, numbers, strict=True))
    shuffled = dict(data.draw(st.permutations(list(row.items()))))
    forms: list[Any] = [shuffled, numbers, tuple(numbers), np.array(numbers, np.float32)]
    for text in (json.dumps(shuffled), json.dumps(shuffled, ensure_ascii=False, indent=4)):
        forms += [text, text.encode(), bytearray(text.encode())]
    forms.append(json.dumps(numbers))
    for form in forms:
        found = Row(tuple(names))(form)
        assert found.dtype == np.float32
        assert found.tolist() == numbers


def answered(step: Row, value: Any) -> tuple[Any, str]:
    """Return the array that a step gives, or None and what it says instead."""
    try:
        return step(value), ""
    except InputError as error:
        return None, str(error)


@given(ANYTHING)
def test_whatever_json_holds_is_a_row_or_refused_in_one_line(value: Any) -> None:
    for missing in ("refuse", "nan"):
        step = Row(NAMES, missing)
        for form in (value, json.dumps(value)):
            found, said = answered(step, form)
            if found is None:
                assert len(said.splitlines()) == 1
            else:
                assert found.shape == (3,)
                assert found.dtype == np.float32
                assert not np.isinf(found).any()
                assert missing == "nan" or np.isfinite(found).all()


@given(st.binary())
def test_bytes_that_are_no_json_are_refused(value: bytes) -> None:
    try:
        json.loads(value)
    except ValueError:
        with pytest.raises(InputError):
            ROW(value)


def test_a_row_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text('{"years": 3, "age": 41, "income": 3200.5}')
    assert ROW(tmp_path / "row.json").tolist() == [41, 3200.5, 3]
    with pytest.raises(InputError, match=r"none\.json can't be read: No such file or directory$"):
        ROW(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"age": 1, "years": 2}', "the row has no column 'income'"),
        (
            '{"age": 1, "years": 2, "incom": 3}',
            "the row has no column 'income', but 'incom'",
        ),
        (
            '{"age": 1, "years": 2, "income": 3, "name": 4}',
            "the row has the column 'name', which isn't among the 3 that are known: leave it out",
        ),
        ("[1, 2]", "a row has 3 values, from 'age' to 'years': got 2"),
        (np.zeros((1, 3)), "a row has 3 values, from 'age' to 'years': got 1 x 3"),
        ('[1, "2", 3]', "the column 'income' needs a number: got a text"),
        ("[1, [2], 3]", "the column 'income' needs a number: got a list"),
        ("[1, null, 3]", "the column 'income' has no value: give one"),
        ([1, math.nan, 3], "the column 'income' has no value: give one"),
        ([1, math.inf, 3], "the column 'income' needs a number that float32 holds"),
        ("[1, -1e39, 3]", "the column 'income' needs a number that float32 holds"),
        ([1, 10**400, 3], "the column 'income' needs a number that float32 holds"),
        (
            '"123"',
            "a row is an object, a list or their JSON: got a text; give the 3 columns",
        ),
        (
            "7",
            "a row is an object, a list or their JSON: got a number; give the 3 columns",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_told_by_its_column(value: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        ROW(value)
    assert str(error.value) == words


@pytest.mark.parametrize("value", ["[1, NaN, 3]", "[1, Infinity, 3]", "[1, 2, 3", "", "[" * 1_400])
def test_json_beyond_its_standard_or_cut_off_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"^the row isn't JSON: "):
        ROW(value)


def test_json_longer_than_such_a_row_can_be_is_refused_unread(tmp_path: Path) -> None:
    long = "[1, 2, 3" + " " * 2_000 + "]"
    (tmp_path / "row.json").write_text(long)
    for form in (long, long.encode(), memoryview(long.encode()), tmp_path / "row.json"):
        with pytest.raises(InputError, match=r"^a row of 3 columns takes at most 1,468 bytes of"):
            ROW(form)


def test_values_that_may_be_missing_become_nan_and_infinite_ones_are_refused() -> None:
    step = Row(NAMES, "nan")
    for form in ('{"age": 1, "years": null}', [1, None, math.nan], "[1, null, null]"):
        assert np.array_equal(step(form), np.array([1, np.nan, np.nan], np.float32), equal_nan=True)
    with pytest.raises(InputError, match=r"^the column 'age' needs a number that float32 holds$"):
        step([math.inf, None, 2])
    with pytest.raises(
        InputError, match=r"^the row has the column 'aeg', which isn't among the 3 "
    ):
        step({"aeg": 1, "years": 2})


def test_true_and_false_are_numbers_in_every_form_of_a_row() -> None:
    """As `pandas.get_dummies` makes columns, and as the libraries of such models take them."""
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    row = {"age": 41, "income": 3200.5, "years": True}
    frame = pandas.DataFrame([row])
    forms: list[Any] = [row, tuple(row.values()), json.dumps(row), json.dumps(list(row.values()))]
    forms += [
        frame,
        frame.convert_dtypes(),
        frame.iloc[0],
        frame.astype({"years": "boolean"}).iloc[0],
    ]
    forms += [row | {"years": np.True_}, frame.to_records(index=False)[0], frame.to_numpy()[0]]
    forms += [arrow.table(frame), arrow.array([row])[0]]
    for form in forms:
        assert ROW(form).tolist() == [41, 3200.5, 1], form
    assert ROW(np.array([True, False, True])).tolist() == [1, 0, 1]


def test_numbers_of_numpy_are_words_and_what_pandas_has_for_no_value_is_missing() -> None:
    pandas = pytest.importorskip("pandas")
    branches = (("branch", (7, 9, 1.5)), ("owner", (0, 1)))
    step = Row(("branch", "owner", "age"), "nan", branches, unseen=(("branch", "other"),))
    for branch in (9, 9.0, np.int64(9), np.int8(9), np.float32(9)):
        for owner in (1, True, np.True_, np.uint8(1)):
            assert step({"branch": branch, "owner": owner, "age": 41}).tolist() == [1, 1, 41]
    assert step({"branch": np.int64(8), "owner": False, "age": 41}).tolist() == [-1, 0, 41]
    for nothing in (pandas.NA, pandas.NaT, np.float32("nan"), None):
        row = step({"branch": nothing, "owner": nothing, "age": nothing})
        assert np.isnan(row).all()
        with pytest.raises(InputError, match=r"^the column 'age' has no value: give one$"):
            ROW({"age": nothing, "income": 1, "years": 2})
    with pytest.raises(InputError, match=r"one of its words, 0, 1: got a number$"):
        Row(("owner",), words=branches[1:])({"owner": np.int64(2)})


def test_words_become_their_places_and_others_are_refused() -> None:
    assert HOUSED('{"housing": "own", "age": 41}').tolist() == [41, 1]
    assert HOUSED([41, "rent"]).tolist() == [41, 0]
    for value, got in (
        ('[41, "owns"]', "'owns'"),
        ("[41, 1]", "a number"),
        ("[41, true]", "true or false"),
    ):
        with pytest.raises(InputError) as error:
            HOUSED(value)
        assert str(error.value) == (
            f"the column 'housing' needs one of its words, 'rent', 'own': got {got}"
        )
    with pytest.raises(InputError, match=r"^the column 'housing' has no value: give one$"):
        HOUSED([41, None])
    with pytest.raises(InputError, match=r"^the column 'age' needs a number: got a text$"):
        HOUSED(["own", "own"])
    lenient = Row(HOUSED.columns, "nan", HOUSED.words)
    assert np.isnan(lenient({"age": 41})[1])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "the column 'town' has no value: give one"),
        (math.nan, "the column 'town' has no value: give one"),
        (
            3.0,
            "the column 'town' needs a text or a whole number: got 3.0, a number with a point",
        ),
        ([], "the column 'town' needs a text or a whole number: got a list"),
        (b"Ulm", "the column 'town' needs a text or a whole number: got a bytes"),
        (
            2**63,
            "the column 'town' needs a text in Unicode or a whole number of up to 64 bits: got 9223372036854775808",
        ),
        (
            "\ud800",
            "the column 'town' needs a text in Unicode or a whole number of up to 64 bits: got '\\ud800'",
        ),
    ],
)
def test_a_value_that_can_not_be_hashed_is_told_by_its_column(value: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        HASHED({"age": 1, "town": value})
    assert str(error.value) == words


def test_a_hashed_column_takes_any_text_and_numbers_as_their_digits() -> None:
    for value, text in (
        ("Ulm", "Ulm"),
        ("", ""),
        (7, "7"),
        (-7, "-7"),
        (True, "1"),
        (np.uint8(7), "7"),
    ):
        assert HASHED({"age": 1, "town": value}).tolist() == [1.0, word_hash(text)]
    assert HASHED('[1, "K\u00f6ln"]').tolist() == [1.0, word_hash("Köln")]
    assert HASHED(np.array([1, 7])).tolist() == [1.0, word_hash("7")]
    with pytest.raises(InputError, match=r"the column 'town' needs a text or a whole number"):
        HASHED(np.array([1.0, 7.0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": ()}, "row.columns: give the names of 1 to 100,000 columns"),
        ({"columns": "age"}, "row.columns: give the names of 1 to 100,000 columns"),
        ({"columns": ("a", "a")}, "row.columns has 'a' twice: give each column once"),
        ({"columns": ("a",), "missing": "zero"}, "row.missing='zero': give 'refuse' or 'nan'"),
        (
            {"columns": ("a",), "words": (("b", ("x",)),)},
            "row.words has 'b', which isn't among the columns",
        ),
        (
            {"columns": ("a",), "words": (("a", ("x", "x")),)},
            "row.words of 'a': give at least 1 word, and each once",
        ),
        (
            {"columns": ("a",), "words": (("a", ("x",)), ("a", ("y",)))},
            "row.words has 'a' twice: give each column once",
        ),
        (
            {"columns": ("a",), "hashed": ("a",)},
            "row.hashed needs row.dtype='float64': float32 can't hold a hash",
        ),
        (
            {"columns": ("a",), "dtype": "float64", "hashed": ("b",)},
            "row.hashed has 'b', which isn't among the columns",
        ),
        (
            {"columns": ("a",), "dtype": "float64", "hashed": ("a",), "words": (("a", ("x",)),)},
            "row.hashed has 'a', which has words or choices too: give one of them",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        Row(**settings)
    assert str(error.value) == words


def test_a_bundle_keeps_the_step_and_reads_no_other_types() -> None:
    record = json.loads(json.dumps(to_record(HOUSED)))
    assert from_record(Step, record) == HOUSED
    assert from_record(Step, json.loads(json.dumps(to_record(HASHED)))) == HASHED
    with pytest.raises(IntegrityError):
        from_record(Step, {**record, "columns": [1, 2]})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the linear classifier for rows of 16 columns, on ONNX Runtime."""
    folder = tmp_path_factory.mktemp("rows")
    pipeline = Pipeline(
        (Row(tuple(f"c{i}" for i in range(16))),),
        (Threshold(0.5, position=1, activation="softmax"),),
    )
    return bundle_of(folder, models.linear_classifier(folder), "desk", pipeline=pipeline)


def test_a_row_is_decided_on_alike_in_python_and_by_a_server(bundle: Path) -> None:
    row = {f"c{i}": i / 16 for i in range(16)}
    with hasten.load(bundle) as model:
        decided = model.decide(row)
        assert model.decide(json.dumps(row)) == decided
    with ServerThread(place_of(bundle)) as server:
        url = f"http://{server.host}/v2/models/desk/infer"

        def asked(kind: str, body: bytes) -> Any:
            request = urllib.request.Request(url, body, {"Content-Type": kind})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["decision"]

        body = json.dumps(row).encode()
        assert asked("text/plain", body) == decided
        assert asked("application/octet-stream", json.dumps(list(row.values())).encode()) == decided
        assert asked("application/json", body) == decided
        with pytest.raises(urllib.error.HTTPError) as error:
            asked("text/plain", b'{"c0": 1}')
        assert error.value.code == 400
        error.value.close()


class Counted(tuple[Any, ...]):
    """A tuple that counts how often it is read through."""

    reads = 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return super().__iter__()


def test_the_words_of_many_columns_are_read_through_a_few_times_only() -> None:
    columns = tuple(f"c{i}" for i in range(100))
    words = Counted((column, ("a",)) for column in columns)
    Row(columns, words=words, unseen=tuple((column, "other") for column in columns))
    assert words.reads < 10
