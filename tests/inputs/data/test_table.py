"""Tables as data of a model of rows: CSV files, frames, lists of rows and arrays."""

from __future__ import annotations

import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import write_spool
from hasten.inputs.data.table import TableRows, as_classes
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.city_hash import word_hash
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.pipeline.vectors import Quantity

ROW = Row(("age", "housing"), "nan", (("housing", ("rent", "own", "NA")),), whole=True)
CLASSES = Pipeline((ROW,), (TopK(labels=("bad", "good"), softmax=False),))
SPECS = [TensorSpec("rows", "float32", ("batch", 2))]
TABLE = {"age": [30, None, 41.5], "housing": ["own", "NA", None], "paid": ["good", "bad", "good"]}
NUMBERS = [[30, 1], [np.nan, 2], [41.5, np.nan]]


def opened(source: Any, pipeline: Pipeline | None = CLASSES) -> Any:
    return open_data(source, SPECS, pipeline)


def refused(source: Any, pipeline: Pipeline | None = CLASSES) -> str:
    with pytest.raises(InputError) as error:
        opened(source, pipeline)
    assert "\n" not in str(error.value)
    return str(error.value)


def csv_of(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path


def forms(folder: Path) -> dict[str, Any]:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    text = "paid,housing,age\ngood,own,30\nbad,NA,\ngood,,41.5\n"
    frame = pandas.DataFrame(TABLE)
    rows = [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]
    bare = {name: TABLE[name] for name in ROW.columns}
    return {
        "csv": csv_of(folder, text),
        "csv and label": f"{csv_of(folder, text)}:paid",
        "pandas": frame,
        "pandas and label": (frame.assign(more=1), "paid"),
        "pandas and labels": (frame[["housing", "age"]], frame["paid"]),
        "pyarrow": pyarrow.table(TABLE),
        "a mapping": TABLE,
        "rows": rows,
        "columns and labels": (bare, np.array(["good", "bad", "good"])),
        "numbers and labels": (np.array(NUMBERS), [1, 0, 1]),
        "values and labels": (
            np.array([[30, "own"], [None, "NA"], [41.5, None]], object),
            [1, 0, 1],
        ),
    }


def test_every_form_of_a_table_gives_its_numbers_and_labels(tmp_path: Path) -> None:
    for name, source in forms(tmp_path).items():
        dataset = opened(source)
        got = dataset.inputs(range(3))["rows"]
        assert got.dtype == np.float32, name
        np.testing.assert_array_equal(got, np.array(NUMBERS, np.float32), err_msg=name)
        assert dataset.labels.tolist() == [1, 0, 1], name


def test_a_column_of_groups_says_which_rows_belong_together(tmp_path: Path) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    groups = ["P1", "P2", "P1"]
    table = TABLE | {"groups": groups}
    text = "groups,paid,housing,age\nP1,good,own,30\nP2,bad,NA,\n P1,good,,41.5\n"
    sources = [
        table,
        (table, "paid"),
        pandas.DataFrame(table),
        pyarrow.table(table),
        csv_of(tmp_path, text),
        f"{csv_of(tmp_path, text)}:paid",
        ({name: table[name] for name in ROW.columns}, TABLE["paid"], pandas.Series(groups)),
    ]
    for source in sources:
        dataset = opened(source)
        assert dataset.groups.tolist() == groups
        assert dataset.labels.tolist() == [1, 0, 1]
    numbered = csv_of(tmp_path, text.replace("P", "0"))
    assert opened(numbered).groups.tolist() == ["01", "02", "01"]
    assert opened((table, TABLE["paid"], [7, 8, 8])).groups.tolist() == [7, 8, 8]
    for missing in (None, np.nan, " "):
        assert refused(table | {"groups": ["P1", missing, "P1"]}) == (
            "the table: row 2 has no group: name one, leave the row out, or rename the column 'groups' if it isn't "
            "about rows that belong together"
        )
        assert refused((TABLE, TABLE["paid"], ["P1", missing, "P1"])) == (
            "the table: row 2 has no group: name one, or leave the row out"
        )


def test_groups_may_be_the_name_of_a_column() -> None:
    pandas = pytest.importorskip("pandas")
    table = TABLE | {"pat": ["P1", "P2", "P1"], "groups": [1, 2, 3]}
    for source in (
        (table, "paid", "pat"),
        (pandas.DataFrame(table), None, "pat"),
        (table, TABLE["paid"], "pat"),
    ):
        dataset = opened(source)
        assert dataset.groups.tolist() == ["P1", "P2", "P1"]
        assert dataset.labels.tolist() == [1, 0, 1]
    assert refused((TABLE, "paid", "pat")) == (
        "the table has no column 'pat' for the groups: it has 'age', 'housing', 'paid'"
    )
    assert refused((np.array(NUMBERS), [1, 0, 1], "pat")) == (
        "'pat' can't be the groups: an array has no column names"
    )


def test_dates_and_bytes_are_groups() -> None:
    pandas = pytest.importorskip("pandas")
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-01"], "M8[D]")
    for groups in (days, days.tolist()):
        assert opened((TABLE, "paid", groups)).groups.tolist() == days.astype(str).tolist()
    times = days.astype("M8[ns]")
    frame = pandas.DataFrame(TABLE | {"groups": times})
    for source in (frame, (TABLE, "paid", times), (TABLE, "paid", pandas.Series(times))):
        assert opened(source).groups.tolist() == days.astype(str).tolist()
    assert opened((TABLE, "paid", np.array([b"a", b"b", b"a"]))).groups.tolist() == [
        b"a",
        b"b",
        b"a",
    ]
    ids = [uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=1)]
    assert opened((TABLE, "paid", ids)).groups.tolist() == list(map(str, ids))
    amounts = [decimal.Decimal("7"), decimal.Decimal("8"), decimal.Decimal("7")]
    assert opened((TABLE, "paid", amounts)).groups.tolist() == ["7", "8", "7"]
    times[1] = "NaT"
    for missing in (times, pandas.Series(times), times.astype("M8[D]")):
        assert refused((TABLE, "paid", missing)) == (
            "the table: row 2 has no group: name one, or leave the row out"
        )


def test_a_row_that_lacks_a_column_has_no_missing_value(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"age": 30, "housing": "own", "paid": "bad"},
        {"Age": 30, "housing": "own", "paid": "bad"},
    ]
    said = "the table: row 2 has no column 'age': give None where there is no value"
    assert refused((rows, "paid")) == said
    assert refused([rows[0], {"housing": "own", "paid": "bad"}]) == said
    may = Pipeline((Row(ROW.columns, "nan", ROW.words),), CLASSES.after)
    assert np.isnan(opened([rows[0], {"housing": "own"}], may).inputs([1])["rows"][0, 0])


def test_a_column_that_comes_twice_is_refused_in_every_table() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    names, columns = ["age", "housing", "age"], [[1.0], ["own"], [2.0]]
    for table in (
        pandas.DataFrame([[1.0, "own", 2.0]], columns=names),
        pyarrow.table(list(map(pyarrow.array, columns)), names=names),
        pyarrow.record_batch(list(map(pyarrow.array, columns)), names=names),
    ):
        assert refused(table) == "the table has the column 'age' twice: name each column once"


def test_what_is_masked_in_a_table_is_missing() -> None:
    numbers = np.ma.masked_equal(np.array([[30, 1], [-9, 2]]), -9)
    for source in (numbers, {"age": numbers[:, 0], "housing": ["own", "NA"]}):
        np.testing.assert_array_equal(opened(source).inputs([0, 1])["rows"], NUMBERS[:2])
    needed = Pipeline((Row(ROW.columns),))
    assert refused(numbers, needed) == "the table: row 2: the column 'age' has no value"


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_dates_and_spans_of_time_are_no_numbers(unit: str) -> None:
    for kind, value in (("M8", "2024-01-02"), ("m8", 5)):
        times = np.array([value] * 3, f"{kind}[{unit}]")
        for source in (
            {**TABLE, "age": times},
            [
                {**row, "age": time}
                for row, time in zip([{"housing": "own", "paid": 1}] * 3, times, strict=True)
            ],
        ):
            assert "row 1: the column 'age' needs a number: got a" in refused(source)
        numbers = Pipeline((Row(("age", "housing")),), ())
        both = np.stack([times, times], axis=1)
        assert "row 1: the column 'age' needs a number: got a" in refused(
            (both, [0, 1, 0]), numbers
        )
        assert refused(({"age": [1, 2, 3], "housing": [1, 2, 3]}, times), numbers).startswith(
            "the table: this model needs numbers as labels: "
        )


def test_a_column_is_a_list_of_a_value_for_each_row() -> None:
    for column, told in (("own", "a str"), (7, "an int")):
        assert refused({"age": [1, 2, 3], "housing": column, "paid": [0, 1, 0]}) == (
            f"the table: the column 'housing' is {told}: give a list with a value for each row"
        )
    assert refused({"age": [1, 2, 3], "housing": ["own", "NA"], "paid": [0, 1, 0]}) == (
        "the table: the column 'housing' has 2 values, but 'age' has 3: give one for each row"
    )
    table: dict[str, list[Any]] = dict(TABLE)  # type: ignore[arg-type]
    columns = {name: iter(values) for name, values in table.items()}
    assert opened(columns).labels.tolist() == [1, 0, 1]


def test_a_column_called_groups_may_be_the_models_or_the_label() -> None:
    row = Row(("age", "groups"))
    specs = [TensorSpec("rows", "float32", ("batch", 2))]
    own = open_data({"age": [1, 2], "groups": [3, 4], "y": [0, 1]}, specs, Pipeline((row,)))
    assert own.groups is None
    assert own.inputs([1])["rows"].tolist() == [[2, 4]]
    label = opened((TABLE | {"groups": ["bad", "good", "bad"]}, "groups"))
    assert (label.groups, label.labels.tolist()) == (None, [0, 1, 0])


def test_true_and_false_are_numbers_in_every_form_of_a_table(tmp_path: Path) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    row = Row(("owner", "flag", "said"), "nan", (("flag", (0, 1)), ("said", ("True", "no"))))
    specs = [TensorSpec("rows", "float32", ("batch", 3))]
    table = {
        "owner": [True, False, None],
        "flag": [False, True, True],
        "said": ["True", "no", "no"],
    }
    paid = ["False", "True", "True"]
    frame = pandas.DataFrame(table)
    written = frame.assign(paid=paid).to_csv(index=False)
    assert "True,False,True,False\n" in written
    sources = [
        (table, paid),
        (frame, paid),
        (frame.astype({"owner": "boolean"}), paid),
        (pyarrow.table(table), paid),
        (frame.to_numpy(), paid),
        csv_of(tmp_path, written),
    ]
    pipeline = Pipeline((row,), (TopK(labels=("False", "True"), softmax=False),))
    for source in sources:
        dataset: Any = open_data(source, specs, pipeline)
        got = dataset.inputs(range(3))["rows"]
        np.testing.assert_array_equal(got, [[1, 0, 0], [0, 1, 1], [np.nan, 1, 1]])
        assert dataset.labels.tolist() == [0, 1, 1]
    for texts in ("owner,flag,said\ntrue,false,no", "owner,flag,said\nTRUE,FALSE,no"):
        found: Any = open_data(csv_of(tmp_path, texts), specs, pipeline)
        assert found.inputs([0])["rows"].tolist() == [[1, 0, 1]]


def test_a_label_of_a_csv_file_that_is_true_or_false_stays_a_class(tmp_path: Path) -> None:
    pipeline = Pipeline((Row(("age",)),), (TopK(labels=("true", "false"), softmax=False),))
    path = csv_of(tmp_path, "age,late\n3,false\n4,true\n")
    found: Any = open_data(path, [TensorSpec("rows", "float32", ("batch", 1))], pipeline)
    assert found.labels.tolist() == [1, 0]


def test_missing_values_survive_the_way_to_the_workers(tmp_path: Path) -> None:
    spool = write_spool(opened(TABLE), tmp_path / "spool")
    assert np.isnan(type(spool).open(spool.folder).inputs([1])["rows"][0, 0])
    assert spool.missing
    path = tmp_path / "rows.npz"
    np.savez(path, rows=np.array(NUMBERS, np.float32), labels=[1, 0, 1])
    assert np.isnan(opened(path).inputs([1])["rows"][0, 0])
    with pytest.raises(InputError, match="sample 1 has NaN or Inf"):
        opened(path, None).inputs([0, 1])


def test_labels_of_a_regression_are_numbers() -> None:
    pipeline = Pipeline((ROW,), (Quantity(),))
    assert opened(TABLE | {"paid": ["1.5", 2, -3]}, pipeline).labels.tolist() == [1.5, 2, -3]
    assert refused(TABLE, pipeline).startswith("the table: this model needs numbers as labels")


@pytest.mark.parametrize(
    "labels", [["0", "1", "0"], [0, 1, 0], [0.0, True, False], ["0.0", "1.0", "0"]]
)
def test_classes_with_numbers_are_found_in_any_spelling(labels: list[Any]) -> None:
    pipeline = Pipeline((ROW,), (TopK(labels=("1", "0"), softmax=False),))
    assert opened(TABLE | {"paid": labels}, pipeline).labels.tolist() == [1, 0, 1]


def test_classes_with_numbers_are_found_in_arrays_and_archives_too(tmp_path: Path) -> None:
    rows, path = np.array(NUMBERS, np.float32), tmp_path / "rows.npz"
    for names, labels, wanted in (
        (("1", "0"), [0, 1, -1], [1, 0, -1]),
        (("-1", "1"), [1, -1, 1], [1, 0, 1]),
        (("1", "2"), [1.0, 2.0, np.nan], [0, 1, NO_NUMBER]),
        (("1", "0"), [True, False, True], [0, 1, 0]),
        (("bad", "good"), [0, 1, -1], [0, 1, -1]),
    ):
        pipeline = Pipeline((ROW,), (TopK(labels=names, softmax=False),))
        np.savez(path, rows=rows, labels=labels)
        for source in (path, {"rows": rows, "labels": np.array(labels)}, (rows, labels)):
            assert opened(source, pipeline).labels.tolist() == wanted
    pipeline = Pipeline((ROW,), (TopK(labels=("-1", "1"), softmax=False),))
    for missing in ([1, None, -1], np.ma.masked_equal([1, 7, -1], 7)):
        for lacking in ({"rows": rows, "labels": missing}, (rows, missing)):
            assert opened(lacking, pipeline).labels.tolist() == [1, NO_NUMBER, 0]
    np.savez(path, rows=rows, labels=[0, 1, 2])
    assert refused(path, Pipeline((ROW,), (TopK(labels=("1", "2"), softmax=False),))) == (
        f"{path}: row 1: the label must be one of '1', '2': got 0"
    )


@pytest.mark.parametrize(
    ("step", "labels", "wanted"),
    [
        (Threshold(position=1, labels=("bad", "good")), ["good", "bad", None], [1, 0, NO_NUMBER]),
        (Threshold(position=0, labels=("good", "bad")), ["good", "bad", None], [1, 0, NO_NUMBER]),
        (Threshold(position=2, labels=("no", "yes")), [2, "0", None], [2, 0, NO_NUMBER]),
        (Threshold(position=1), [1, 0, None], [1, 0, NO_NUMBER]),
    ],
)
def test_labels_are_numbers_of_classes_where_a_threshold_reads_one_of_them(
    step: Threshold, labels: list[Any], wanted: list[int]
) -> None:
    got = opened(TABLE | {"paid": labels}, Pipeline((ROW,), (step,))).labels
    assert (got.dtype, got.tolist()) == (np.int64, wanted)


def test_labels_that_are_no_numbers_of_classes_stay_as_they_are() -> None:
    for step in (Threshold(), Threshold(position=1)):
        pipeline = Pipeline((ROW,), (step,))
        assert opened(TABLE | {"paid": [0.5, 0, 1]}, pipeline).labels.tolist() == [0.5, 0, 1]


def test_a_long_list_of_columns_is_cut_between_two_of_them() -> None:
    many = {"age": [1.0]} | {f"column {number}": [1.0] for number in range(60)}
    assert refused(many).endswith("'column 21', 'column 22', ... in addition to the known ones")


@pytest.mark.seconds
def test_a_file_of_very_many_columns_is_judged(tmp_path: Path) -> None:
    # So many that comparing each with each other would take hours.
    names = [f"c{number}" for number in range(300_000)]
    many = csv_of(tmp_path, ",".join(names) + "\n")
    assert refused(many).startswith(
        f"{many} has no column 'age', which the model takes; it has 'c0'"
    )
    twice = csv_of(tmp_path, ",".join([*names, "last", "last"]) + "\n")
    assert refused(twice) == f"{twice} has the column 'last' twice: name each column once"


def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    two = {"age": [1.0], "housing": ["own"]}
    assert refused({"age": [1.0], "house": ["own"]}) == (
        "the table has no column 'housing', which the model takes; it has 'house' in addition to the known ones"
    )
    path = csv_of(tmp_path, "age,house,paid\n1,own,bad\n")
    assert refused(path) == (
        f"{path} has no column 'housing', which the model takes; it has 'house', 'paid' in addition to the known ones"
    )
    assert refused(two | {"paid": ["bad"], "id": [7]}) == (
        "the table has the columns 'paid', 'id' in addition to the model's: name the label, as "
        "in rows.csv:id or (table, 'id')"
    )
    assert refused(two | {"age": ["old"]}) == (
        "the table: row 1: the column 'age' needs a number: got a text"
    )
    assert refused(two | {"housing": ["boat"]}) == (
        "the table: row 1: the column 'housing' needs one of its words, 'rent', 'own', 'NA': got 'boat'"
    )
    assert refused(two | {"paid": ["maybe"]}) == (
        "the table: row 1: the label must be one of 'bad', 'good': got 'maybe'"
    )
    assert refused((two, "age")) == (
        "the table: the model takes the column 'age', so it can't be the label"
    )
    assert refused((two, "paid")) == (
        "the table has no column 'paid' for the labels: it has 'age', 'housing'"
    )
    assert refused({"age": [], "housing": []}) == "the table has no rows"
    assert refused(np.zeros((3, 5))) == (
        "the model takes 2 columns, from 'age' to 'housing', but the array has 5"
    )
    assert refused(np.array([[1, np.inf]])) == (
        "the table: row 1: the column 'housing' isn't a number that float32 holds"
    )
    path = csv_of(tmp_path, "age,housing\n1,own\n2\n")
    assert refused(path) == f"{path}: row 2 has 1 values, but the first line names 2 columns"
    assert refused(csv_of(tmp_path, "age,age\n")) == (
        f"{path} has the column 'age' twice: name each column once"
    )
    path.write_bytes(b"age,housing\n1,\xff\n")
    assert refused(path).startswith(f"{path} can't be read as CSV in UTF-8: ")
    assert refused(path, None) == (
        f"{path} is a table, but nothing states which columns the model takes, and in which "
        "order: give a pipeline that begins with the step row, or a model that states its columns"
    )


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ('bad,1,own\ngood,2,"own\nbad,3,own\nbad,4,own\n', "lines 3 to 5"),
        ('bad,1,own\ngood,2,"own\nbad,3,"own"\n', "lines 3 to 4"),
        ('bad,1,own\ngood,2,"own" house\nbad,3,own\n', "line 3"),
    ],
)
def test_a_quotation_mark_without_its_end_takes_no_rows_with_it(
    tmp_path: Path, rows: str, where: str
) -> None:
    path = csv_of(tmp_path, f"paid,age,town\n{rows}")
    pipeline = Pipeline(
        (Row(("age", "town"), "nan", dtype="float64", hashed=("town",)),), CLASSES.after
    )
    assert refused(path, pipeline) == (
        f"{path}: {where}: a quotation mark has no end, or something other than a comma follows one: write a mark "
        "inside a cell twice"
    )
    path = csv_of(tmp_path, 'paid,age,town\nbad,1,"own\n' + "good,2,own\n" * 20_000)
    assert refused(path, pipeline) == (
        f"{path}: lines 2 to 11918: a value has more than 131,072 characters, or a quotation mark has no end: write a "
        "mark inside a cell twice"
    )


def test_a_hashed_column_of_a_file_that_has_only_true_and_false_has_a_note(tmp_path: Path) -> None:
    row = Row(("owner", "town"), "nan", dtype="float64", hashed=("owner", "town"), whole=True)
    pipeline, specs = Pipeline((row,)), [TensorSpec("rows", "float64", ("batch", 2))]

    def notes(source: Any) -> tuple[str, ...]:
        found = open_data(source, specs, pipeline)
        assert isinstance(found, TableRows)
        return found.notes

    path = csv_of(tmp_path, "owner,town\nTrue,True\nFalse,Ulm\n")
    assert notes(path) == (
        f"{path}: the column 'owner' has only texts such as 'True', which are categories as they are: if CatBoost was "
        "trained with truth values, which are 1 and 0 to it, write these",
    )
    assert notes(csv_of(tmp_path, "owner,town\n1,True\n0,Ulm\n")) == ()
    assert notes({"owner": [True, False], "town": ["a", "b"]}) == ()


def test_a_hashed_column_has_the_texts_of_a_file_as_they_are_and_whole_numbers_as_theirs(
    tmp_path: Path,
) -> None:
    pandas = pytest.importorskip("pandas")
    row = Row(("age", "town"), "nan", dtype="float64", whole=True, hashed=("town",))
    pipeline, specs = Pipeline((row,)), [TensorSpec("rows", "float64", ("batch", 2))]

    def hashes(source: Any) -> list[float]:
        dataset = open_data(source, specs, pipeline)
        found: list[float] = dataset.inputs(range(4))["rows"][:, 1].tolist()
        return found

    towns = ["NA", "007", "True", " x"]
    text = "\n".join(("town,age,label", *(f"{town},3,1" for town in towns)))
    assert hashes(csv_of(tmp_path, text)) == [word_hash(town) for town in towns]
    frame = pandas.DataFrame({"town": [7, 8, 9, 7], "age": 3.0})
    assert hashes((frame, [0, 1, 0, 1])) == [word_hash(town) for town in "7897"]
    flags = frame.assign(town=[True, False, False, True])
    assert hashes((flags, [0, 1, 0, 1])) == [word_hash(town) for town in "1001"]
    with pytest.raises(InputError, match=r"row 2: the column 'town' has no value: give one"):
        hashes(csv_of(tmp_path, "town,age,label\nUlm,3,1\n,3,1\n"))
    with pytest.raises(
        InputError, match=r"row 1: the column 'town' needs a text or a whole number"
    ):
        hashes((frame.assign(town=7.0), [0, 1, 0, 1]))


def test_a_name_of_several_classes_is_no_label_of_the_last_one() -> None:
    birds = Pipeline((ROW,), (TopK(labels=("crane", "hen", "crane"), softmax=False),))
    assert refused(TABLE | {"paid": ["hen", "crane", "hen"]}, birds) == (
        "the table: row 2: several classes are called 'crane': give labels as numbers of classes"
    )
    assert opened(TABLE | {"paid": ["hen", 2, 0]}, birds).labels.tolist() == [1, 2, 0]
    with pytest.raises(InputError, match="row 1: several classes are called 'crane'"):
        open_data(
            (np.zeros((2, 3)), np.array(["crane", "hen"])), SPECS[:1], Pipeline((), birds.after)
        )


@pytest.mark.parametrize("label", ["1", 1, "1.0", 1.0, True, " 1"])
def test_a_number_that_names_several_classes_is_no_label_of_the_first(
    tmp_path: Path, label: Any
) -> None:
    twice = Pipeline((ROW,), (TopK(labels=("1", "1", "2"), softmax=False),))
    assert refused(TABLE | {"paid": ["2", label, 2]}, twice) == (
        f"the table: row 2: several classes are called {int(label) if label is True else label!r}: "
        "give each class a name of its own"
    )
    path = csv_of(tmp_path, f"age,housing,paid\n1,own,2\n2,own,{label}\n")
    assert refused(path, twice).startswith(f"{path}: row 2: several classes are called ")
    spelled = Pipeline((ROW,), (TopK(labels=("1", "1.0", "2"), softmax=False),))
    assert opened(TABLE | {"paid": ["1.0", "1", 2]}, spelled).labels.tolist() == [1, 0, 2]
    assert "several classes are called 1.0" in refused(TABLE | {"paid": [2, 1.0, 2]}, spelled)


def test_classes_of_a_file_are_called_as_it_spells_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    def labels(names: tuple[str, ...], cells: list[str]) -> list[int]:
        rows = "".join(f"30,own,{cell}\n" for cell in cells)
        path.write_text(f"age,housing,paid\n{rows}")
        pipeline = Pipeline((ROW,), (TopK(labels=names, softmax=False),))
        found: list[int] = opened(path, pipeline).labels.tolist()
        return found

    assert labels(("007", "7", "70"), ["7", "007", "70", "070"]) == [1, 0, 2, 2]
    assert labels(("007", "008"), ["007", "8", "8.0", ""]) == [0, 1, 1, NO_NUMBER]
    assert labels(("1e5", "100000"), ["1e5", "100000"]) == [0, 1]
    assert labels(("no", "yes"), ["1", "0.0", " 1", "yes"]) == [1, 0, 1, 1]
    assert labels(("NA", "DE"), ["NA", "DE"]) == [0, 1]
    path.write_text("age,housing,paid\n30,own,7.0\n")
    assert refused(path, Pipeline((ROW,), (TopK(labels=("007", "7"), softmax=False),))) == (
        f"{path}: row 1: several classes are called '7.0': give each class a name of its own"
    )


@pytest.mark.parametrize("label", [[1], {"a": 1}, 10**400, "9" * 400])
def test_a_label_that_is_no_class_is_refused(label: Any) -> None:
    said = refused(TABLE | {"paid": ["good", label, "bad"]}, CLASSES)
    assert said.startswith("the table: row 2: the label must be one of 'bad', 'good': got ")


def test_a_number_of_400_digits_is_no_label() -> None:
    pipeline = Pipeline((ROW,), ())
    said = refused(TABLE | {"paid": [1, 10**400, 3]}, pipeline)
    assert said.startswith("the table: this model needs numbers as labels: ")


def test_a_label_beyond_whole_numbers_of_floats_is_no_class() -> None:
    assert as_classes(np.array([1e300, 1.0])).tolist() == [1e300, 1.0]
    assert as_classes(np.array([3.0, np.nan])).tolist() == [3, NO_NUMBER]
