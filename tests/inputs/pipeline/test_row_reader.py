"""The quick reader of rows agrees with the step `row` in all that it reads and all that it refuses."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.inputs.pipeline.city_hash import word_hash
from hasten.inputs.pipeline.row_reader import RowReader
from hasten.inputs.pipeline.rows import Row

NAMES = ("age", "housing", "years")
STEPS = [
    Row(NAMES, missing, words=words)
    for missing in ("refuse", "nan")
    for words in ((), (("housing", ("own", "rent")),))
]
STEPS += [
    Row(NAMES, "nan", STEPS[1].words, unseen=(("housing", "missing"),), whole=True),
    Row(NAMES, "nan", STEPS[1].words, required=("age", "housing"), unseen=(("housing", "other"),)),
    Row(NAMES, "nan", required=("years",), whole=True),
    Row(NAMES, "refuse", STEPS[1].words, unseen=(("housing", "missing"),), whole=True),
    Row(NAMES, choices=(("years", (1.0, 3.0)),), whole=True),
    Row(NAMES, "nan", STEPS[1].words, choices=(("years", (1.0, 3.0)),), required=("age",)),
    Row(NAMES, choices=(("years", (3, 0.0, 2.5)),)),
    Row(NAMES, "nan", choices=(("years", (3.0, -1)), ("age", (1, 1.5, 2**64))), whole=True),
    Row(NAMES, "nan", (("housing", ("own", "rent")),), choices=(("housing", (1,)),)),
    Row(NAMES, words=(("housing", (0, 1, 3)),)),
    Row(NAMES, "nan", (("housing", (2.5, "own", 1)),), unseen=(("housing", "other"),)),
    Row(NAMES, "nan", STEPS[1].words, required=("age",), infinite="allow"),
    Row(NAMES, infinite="allow"),
    Row(NAMES, "nan", dtype="float64", hashed=("housing",)),
    Row(NAMES, "nan", STEPS[1].words, "float64", whole=True, infinite="allow", hashed=("years",)),
    Row(NAMES, dtype="float64", hashed=("age", "housing"), choices=(("years", (1.0, 3.0)),)),
]
HASHED = len(STEPS) - 3
READERS = [RowReader(step) for step in STEPS]
PLAIN, WORDED = READERS[0], READERS[1]
VALUES: st.SearchStrategy[Any] = (
    st.floats()
    | st.integers()
    | st.floats(width=32)
    | st.text(max_size=2)
    | st.sampled_from(
        [
            *(-0.0, 1.8e19, 3.4028235e38, 3.4028235677973366e38, 1e39, -1e300, 2**63, 2**64),
            *(10**400, True, None, "own", "rent", "let", [], {}),
            *(np.float32(1.5), np.float64(2.5), np.int64(3), np.bool_(True), np.str_("own")),
            *(np.float32("nan"), np.uint8(1), np.int64(2**62), False),
            *("a" * 40, "\ud800", "Köln", -(2**63), 3.0),
        ]
    )
)
TOKENS = st.sampled_from(
    [
        *('"age":1', '"age":0.1e1', '"\\u0061ge":4', '"age":NaN', '"housing":-0', '"housing":2.5'),
        *('"housing":"own"', '"housing":"let"', '"years":1e999', '"years":3', '"years":null'),
        *('"years":-0.0', '"years":12345678901234567890123', '"years":true', '"other":1'),
        *(
            '"housing":true',
            '"housing":false',
            '"housing":3.0',
            '"housing":"\\ud800"',
            '"years":"3"',
        ),
    ]
)


def told(read: Any) -> tuple[bytes | None, str]:
    """Return the bytes of what is read, or what is said instead."""
    try:
        found = np.array(read())
        found[found != found] = np.nan  # which has many forms
        return found.tobytes(), ""
    except InputError as error:
        return None, str(error)


def check_alike(value: Any) -> None:
    """Compare each reader with its step, and see that nothing beside the row is written."""
    for reader in READERS:
        into = np.full((3, 3), 7, reader.dtype)

        def quick(reader: RowReader = reader, into: Any = into) -> Any:
            reader.read(value, into, 1)
            return into[1]

        assert told(quick) == told(lambda reader=reader: reader.step(value))
        assert (into[::2] == 7).all()


@settings(max_examples=120, deadline=None)
@given(
    st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES))
    | st.dictionaries(st.sampled_from((*NAMES, "other")), VALUES)
    | st.lists(VALUES, max_size=4)
    | st.tuples(VALUES, VALUES, VALUES)
)
@example([True, 1.0, 2.0])
@example([True, None, 2.0])
@example({"age": 1.5, "housing": "rent", "years": 3})
@example({"age": 2**64 + 1, "years": -1})
@example([2**64 + 1, 0, None])
def test_every_row_is_read_or_refused_as_by_the_step(row: Any) -> None:
    check_alike(row)
    try:
        text = json.dumps(row)
    except TypeError:
        return
    check_alike(text)
    check_alike(text.encode())


@settings(max_examples=80, deadline=None)
@given(st.lists(TOKENS, max_size=5))
@example(['"age":1', '"housing":-0', '"years":3'])
@example(['"age":1', '"age":2', '"housing":"own"', '"years":3'])
def test_every_spelling_of_json_is_read_or_refused_as_by_the_step(tokens: list[str]) -> None:
    check_alike(("{" + ",".join(tokens) + "}").encode())
    check_alike(" { " + " , ".join(tokens) + " }\n")
    check_alike(("[" + ",".join(one.partition(":")[2] for one in tokens) + "]").encode())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats() | st.floats(width=32) | st.just(1e200), min_size=3, max_size=3),
    st.sampled_from("fdeg"),
)
def test_every_array_is_read_or_refused_as_by_the_step(row: list[float], kind: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(row, kind)
    for each in (array, array[::-1], array[:2], array[None]):
        check_alike(each)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3))
def test_whole_numbers_of_an_array_are_rounded_as_by_the_step(row: list[int]) -> None:
    check_alike(np.array(row, np.int64))
    check_alike(np.array(row, np.int64) % 2 == 0)


def test_plain_rows_of_columns_with_choices_are_read_quickly() -> None:
    reader = READERS[10]
    into = np.zeros((1, 3), np.float32)
    row = {"age": 1, "housing": 2, "years": 2.5}
    for plain in (row, json.dumps(row).encode(), list(row.values()), np.array([1, 2, 2.5])):
        into[:] = 0
        assert reader.read_quickly(plain, into)
        assert into.tolist() == [[1, 2, 2.5]]
    assert not reader.read_quickly({**row, "years": 4}, into)


def test_plain_rows_with_true_and_false_are_read_quickly() -> None:
    into = np.zeros((1, 3), np.float32)
    row = {"age": True, "housing": 0, "years": False}
    for plain in (
        row,
        json.dumps(row).encode(),
        list(row.values()),
        np.array([True, False, False]),
    ):
        into[:] = 7
        assert PLAIN.read_quickly(plain, into)
        assert into.tolist() == [[1, 0, 0]]


def test_rows_of_the_models_of_other_libraries_are_read_quickly() -> None:
    """Their steps have further settings: a row that is whole, words that aren't known, needed columns."""
    into = np.zeros((1, 3), np.float32)
    worded = {"age": 1.5, "housing": "rent", "years": None}
    unknown, without = {**worded, "housing": "let"}, {**worded, "housing": math.nan}
    chosen = {"age": 1, "housing": "own", "years": 3}
    for place, rows in ((4, (worded, unknown, without)), (5, (worded, unknown)), (9, (chosen,))):
        reader = READERS[place]
        for row in rows:
            assert reader.read_quickly(row, into), row
            np.testing.assert_equal(into[0], reader.step(row))
            assert reader.read_quickly(tuple(row.values()), into)


def test_plain_rows_of_hashed_columns_are_read_quickly_whether_or_not_their_words_are_new() -> None:
    into = np.zeros((1, 3))
    for word, text in (("rent", "rent"), (7, "7"), (True, "1"), ("x" * 1000, "x" * 1000)):
        for row in ({"age": 1.5, "housing": word, "years": 3}, (1.5, word, 3)):
            for _ in range(2):
                assert READERS[HASHED].read_quickly(row, into)
                assert into.tolist() == [[1.5, word_hash(text), 3]]
    others: list[Any] = [3.0, None, [], "\ud800", 2**63]
    for other in others:
        assert not READERS[HASHED].read_quickly((1.5, other, 3), into)


def test_a_step_with_a_setting_that_the_quick_way_does_not_keep_is_left_to_itself() -> None:
    class Doubled(Row):
        def __call__(self, value: Any) -> Any:
            return 2 * super().__call__(value)

    into = np.zeros((1, 1), np.float32)
    RowReader(Doubled(("a",))).read({"a": 4}, into)
    assert into.tolist() == [[8]]


# -- rows and tables of other libraries


def test_a_record_of_numpy_is_a_row_by_its_names() -> None:
    records = np.array([(3, 1.5, 2)], [("years", "i4"), ("age", "f8"), ("housing", "u1")])
    assert PLAIN.step(records[0]).tolist() == [1.5, 2, 3]
    check_alike(records[0])


def test_a_row_of_pandas_is_read_by_its_index() -> None:
    pandas = pytest.importorskip("pandas")
    numbers = pandas.DataFrame([[1.5, 2, 3], [4, 5, 6]], columns=list(NAMES))
    mixed = pandas.DataFrame({"years": [3, 4], "housing": ["rent", None], "age": [1.5, np.nan]})
    for frame in (numbers, numbers[["years", "age", "housing"]], mixed, mixed[list(NAMES)]):
        for place in range(2):
            check_alike(frame.iloc[place])
            check_alike(frame.iloc[[place]])
    assert PLAIN.step(numbers[["years", "age", "housing"]].iloc[1]).tolist() == [4, 5, 6]
    twice = pandas.Series([1, 2, 3], index=["age", "age", "years"])
    with pytest.raises(InputError) as error:
        PLAIN.step(twice)
    assert str(error.value) == "the row has the column 'age' twice: give each column once"
    with pytest.raises(InputError) as error:
        PLAIN.step(numbers)
    assert str(error.value) == "a row is one row of a table: got a table of 2 rows"


def test_a_record_of_arrow_is_read_by_its_names() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"years": [3, 4], "housing": ["rent", None], "age": [1.5, None]})
    batch = table.to_batches()[0]
    for place in range(2):
        check_alike(batch.to_struct_array()[place])
        check_alike(batch.slice(place, 1))
        check_alike(table.slice(place, 1))
    assert WORDED.step(batch.to_struct_array()[0]).tolist() == [1.5, 1, 3]


def tables_of(columns: dict[str, list[Any]]) -> list[Any]:
    """Return one table in each form that tables come in."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found: list[Any] = [rows, iter(rows)]
    pandas = pytest.importorskip("pandas")
    arrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(columns)
    return [
        *found,
        frame,
        frame.convert_dtypes(),
        arrow.table(columns),
        *arrow.table(columns).to_batches(),
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"years": [3, 4], "housing": [0, 1], "age": [1.5, 2.5]},
        {"years": [3, 4], "housing": ["rent", "own"], "age": [1.5, 2.5]},
        {"years": [3, None], "housing": ["rent", None], "age": [None, 2.5]},
        {"years": [3, 3], "housing": [0, 1], "age": [1.5, 1]},
        {"years": [3, None], "housing": ["rent", "rent"], "age": [1.5, None]},
        {"years": [3, 4], "housing": ["rent", "let"], "age": [1.5, 2.5]},
        {"years": [3, 4], "housing": [0, 1], "age": [1.5, 1e39]},
        {"years": [True, False], "housing": [0, 1], "age": [1.5, 2.5]},
        {"years": [True, False], "housing": [True, True], "age": [False, True]},
        {"years": [True, None], "housing": [False, True], "age": [1.5, 2.5]},
        {"years": [True, None], "housing": [None, "own"], "age": [1.5, None]},
        {"years": [3, 4], "housing": ["Ulm", "Köln"], "age": ["3", "x"]},
        {"years": [3, 1], "housing": [True, False], "age": [7, 2**62]},
        {"years": [3, 4], "age": [1.5, 2.5]},
        {"years": [3, 4], "housing": [0, 1], "age": [1.5, 2.5], "other": [1, 2]},
    ],
)
def test_a_table_is_read_or_refused_as_its_rows_are(columns: dict[str, list[Any]]) -> None:
    for table in tables_of(columns):
        check_table(table, columns)


def check_table(table: Any, columns: dict[str, list[Any]]) -> None:
    """Compare each reader's table with its step's rows."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = list(table) if isinstance(table, list) else rows
    for reader in READERS:
        expected: Any = []
        for place, row in enumerate(rows):
            found, said = told(lambda reader=reader, row=row: reader.step(row))
            expected.append(found)
            if found is None:
                expected = f"row {place}: {said}"
                break
        found, said = told(lambda reader=reader, rows=rows: reader.read_all(rows))
        size = reader.columns * reader.dtype.itemsize
        assert (said or [found[n : n + size] for n in (0, size)]) == expected  # type: ignore[index]
        if hasattr(table, "__next__"):
            continue
        again, said_of_table = told(lambda reader=reader, table=table: reader.read_all(table))
        assert again == found
        broken = reader.step.hashed and any(None in column for column in columns.values())
        if not broken:  # else the table made floats of whole numbers
            assert said_of_table.partition(": got")[0] == said.partition(": got")[0]


def test_a_matrix_is_read_as_its_rows_are() -> None:
    numbers = np.arange(6, dtype=np.float32)
    for matrix in (np.arange(6).reshape(2, 3), numbers.reshape(3, 2).T, np.eye(2, 3) > 0):
        assert PLAIN.read_all(matrix).tolist() == matrix.tolist()
        assert PLAIN.read_all(matrix).flags.c_contiguous
    for reader in READERS:
        for number in (np.nan, np.inf, 1e39):
            wrong = np.array([[1, 0, 2], [3, 1, number]])
            assert told(lambda reader=reader, wrong=wrong: reader.read_all(wrong)) == told(
                lambda reader=reader, wrong=wrong: reader.read_all(wrong.tolist())
            )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "there are no rows: give at least 1"),
        ({"age": 1}, "rows are a list of rows, or a table: got dict; give one row in a list"),
        ("[[1]]", "rows are a list of rows, or a table: got str; give one row in a list"),
        (3, "rows are a list of rows, or a table: got int; give one row in a list"),
    ],
)
def test_what_is_no_table_gets_one_line(rows: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        PLAIN.read_all(rows)
    assert str(error.value) == words
