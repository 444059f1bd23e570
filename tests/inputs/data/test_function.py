import datetime
import decimal
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.function import call_function, from_python
from hasten.inputs.data.groups import group_array, group_name
from hasten.inputs.data.npz import open_npz
from hasten.inputs.data.ragged import RaggedDataset
from hasten.inputs.data.spool import Spool

X = np.arange(12, dtype=np.float32).reshape(6, 2)
LABELS = np.arange(6)


class Indexed:
    """As torch's map-style data sets are: a length, and no IndexError at the end."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return X[index % 6], int(LABELS[index % 6])


@pytest.mark.parametrize(
    "given",
    [
        {"x": X, "labels": LABELS},
        (X, LABELS),
        ({"x": X}, LABELS),
        [(x, label) for x, label in zip(X, LABELS, strict=True)],
        ((x, label) for x, label in zip(X, LABELS, strict=True)),
        [({"other": x}, label) for x, label in zip(X, LABELS, strict=True)],
        Indexed(),
        ArrayDataset({"x": X}, LABELS),
    ],
)
def test_data_may_come_in_any_of_these_forms(given: Any, tmp_path: Path) -> None:
    data = from_python(given, ["x"], tmp_path / "spool")
    assert (len(data), data.names) == (6, ("x",))
    np.testing.assert_array_equal(data.inputs([5, 0])["x"], X[[5, 0]])
    assert data.labels is not None
    assert data.labels.tolist() == LABELS.tolist()


def test_groups_may_come_with_arrays_or_samples(tmp_path: Path) -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    for i, given in enumerate(
        (
            (X, None, groups),
            {"x": X, "groups": groups},
            [(x, label, group) for x, label, group in zip(X, LABELS, groups, strict=True)],
        )
    ):
        data = from_python(given, ["x"], tmp_path / str(i))
        assert data.groups is not None
        assert data.groups.tolist() == groups


def test_samples_without_labels_and_with_several_inputs(tmp_path: Path) -> None:
    data = from_python([{"a": X[0], "b": 1}, {"b": 2, "a": X[1]}], ["b", "a"], tmp_path / "spool")
    assert data.labels is None
    assert data.inputs([1])["b"].tolist() == [2]
    np.testing.assert_array_equal(data.inputs([1])["a"], X[[1]])


def test_torch_tensors_are_taken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    rows = [(torch.tensor(x, requires_grad=True), torch.tensor(1)) for x in X]
    data = from_python(rows, ["x"], tmp_path / "spool")
    np.testing.assert_array_equal(data.inputs([2])["x"], X[[2]])
    assert data.labels is not None
    assert data.labels.shape == (6,)


def test_a_generator_is_read_one_sample_at_a_time(tmp_path: Path) -> None:
    alive = 0
    most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def samples() -> Iterator[Any]:
        nonlocal alive, most
        for i in range(50):
            alive += 1
            most = max(most, alive)
            yield np.full(3, i, np.float32).view(Counted)

    data = from_python(samples(), ["x"], tmp_path / "spool")
    assert isinstance(data, Spool)
    assert len(data) == 50
    assert most <= 3


def test_samples_hash_as_the_same_arrays_do(tmp_path: Path) -> None:
    spooled, whole = from_python(list(X), ["x"], tmp_path / "spool"), ArrayDataset({"x": X})
    assert [spooled.content_hash(i) for i in range(6)] == [whole.content_hash(i) for i in range(6)]


def refused(given: Any, folder: Path, names: tuple[str, ...] = ("x",)) -> str:
    with pytest.raises(InputError) as error:
        from_python(given, names, folder / "spool")
    return str(error.value)


class Loader:
    """Looks as torch's DataLoader does."""

    batch_sampler = object()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            3,
            "the data gave a int; give a Dataset, arrays, or an iterable of samples",
        ),
        ("abc", "the data gave a str; give a Dataset, arrays, or an iterable of samples"),
        (
            Loader(),
            "the data: a DataLoader gives batches; give its dataset, or batch_size=None",
        ),
        (
            (1, 2),
            "the data: a tuple is (inputs, labels) or (inputs, labels, groups) of whole arrays; "
            "give samples as a list",
        ),
        ([], "the data has no samples"),
        ([(X[0], 1), X[1]], "the data: sample 1 has 1 parts, but the first has 2"),
        (
            [(X[0], 1, 2, 3)],
            "the data: sample 0 has 4 parts; give inputs, (inputs, label) or (inputs, label, group)",
        ),
        (
            [(X[0], [1]), (X[1], [1, 2])],
            "the data: the label of sample 1 has the shape [2], but the first has [1]; pad "
            "labels to one shape",
        ),
        (
            [X[0], X[1, 0]],
            "input 'x': sample 1 has 0 dimensions [], but the first has 1 [2]",
        ),
        ([np.zeros(2, "V2")], "input 'x': sample 0 is an array of |V2; give numbers"),
        ([np.array("text")], "input 'x': sample 0 is an array of <U4; give numbers"),
        ((X, LABELS[:5]), "labels: 5 for 6 samples; give one for each"),
        *(
            (
                given,
                "a list of the data has lists or arrays of different lengths: pad them to one length, or give inputs that "
                "differ in shape as a list of arrays",
            )
            for given in (
                (X, [[1], [1, 2]] * 3),
                {"x": X, "labels": [[1], [1, 2]] * 3},
                (X, LABELS, [["a"], ["a", "b"]] * 3),
                {"x": [[1], [1, 2]] * 3},
                [([[1], [1, 2]], 0)],
                [(X[0], [[1], [1, 2]])],
            )
        ),
        ({"a": X, "b": X}, "the model takes the inputs x; the data has a, b"),
    ],
)
def test_what_is_no_data_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    assert refused(given, tmp_path) == message


def test_masked_values_are_refused_and_a_mask_of_nothing_is_dropped(tmp_path: Path) -> None:
    masked = np.ma.masked_equal(X, X[1, 1])
    said = (
        "an array of the data has masked values: fill them in, as by x.filled(0), or leave out the samples that "
        "have some"
    )
    ragged = [masked[0], masked[1], X[2, :1]]
    groups = np.ma.masked_equal(LABELS, 3)
    listed: list[Any] = [
        {"x": [*masked]},
        {"x": (*masked,)},
        [([*masked], 1)],
        {"x": [[*X[:1]], [*masked[1:2]]]},
    ]
    for given in (masked, (masked, LABELS), {"x": masked}, [*masked], {"x": ragged}, *listed):
        assert refused(given, tmp_path / "no") == said
    assert refused((X, None, [*groups]), tmp_path / "no") == (
        "groups: sample 3 has none: give it a group of its own, or leave the sample out"
    )
    assert refused((X, LABELS, groups), tmp_path / "no") == said
    both = {"a": LABELS, "b": groups}
    for by_output in ((X, both), {"x": X, "labels@a": LABELS, "labels@b": groups}):
        assert refused(by_output, tmp_path / "no") == said
    single = [(x, label, group) for x, label, group in zip(X, LABELS, groups, strict=True)]
    at = LABELS.tolist().index(3)
    assert refused(single, tmp_path / "one") == f"the data: the group of sample {at}: {said}"
    several = [(x, {"a": label}) for x, label in zip(X, groups, strict=True)]
    assert refused(several, tmp_path / "own") == f"the data: the label of sample {at}: {said}"
    with pytest.raises(InputError) as error:
        from_python([*zip(X, groups, strict=True)], ["x"], tmp_path, reread=True)
    assert str(error.value) == f"the data: the label of sample {at}: {said}"
    with pytest.raises(InputError, match="has masked values"):
        ArrayDataset({"x": masked})
    for kind in (ArrayDataset, RaggedDataset):
        with pytest.raises(InputError, match="has masked values"):
            kind({"x": X}, None, groups)
    for whole in (np.ma.masked_array(X), [*np.ma.masked_array(X)], [*X]):
        data = from_python({"x": whole}, ["x"], tmp_path)
        assert type(data.inputs([0])["x"]) is np.ndarray
        np.testing.assert_array_equal(data.inputs([1])["x"], X[[1]])


@pytest.mark.parametrize("reread", [False, True])
def test_dates_and_ids_of_a_database_are_groups_in_every_form_of_data(
    tmp_path: Path, reread: bool
) -> None:
    days = [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 2, 3)] * 3
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)] * 3
    cases: list[tuple[list[Any], list[Any]]] = [
        ([decimal.Decimal("7.5"), decimal.Decimal("8")] * 3, ["7.5", "8"]),
        (ids, [str(one) for one in ids[:2]]),
        (days, ["2024-01-01", "2024-01-02 03:00:00"]),
        ([7, "a"] * 3, ["7", "a"]),
        (["a", "bb"] * 3, ["a", "bb"]),
        ([1, 2] * 3, [1, 2]),
        ([2**63 + 1, -5] * 3, [str(2**63 + 1), "-5"]),
        ([2**53 + 1, 0.5] * 3, [str(2**53 + 1), "0.5"]),
        ([2**70, 2**70 + 1] * 3, [str(2**70), str(2**70 + 1)]),
    ]
    for number, (groups, told) in enumerate(cases):
        whole: list[Any] = [(X, None, groups), {"x": X, "groups": np.array(groups, object)}]
        for given in (*whole, [*zip(X, LABELS, groups, strict=True)]):
            data = from_python(given, ["x"], tmp_path / f"{number}", reread=reread)
            shutil.rmtree(tmp_path / f"{number}", ignore_errors=True)
            assert data.groups is not None
            assert data.groups.tolist() == told * 3


@pytest.mark.parametrize("reread", [False, True])
@pytest.mark.parametrize(
    "groups",
    [
        [1, 2.0, 3, float("nan"), 4, 5],
        ["a", "b", "a", " ", "b", "c"],
        ["a", "b", "a", None, "b", "c"],
        [b"a", b"b", b"a", b"", b"b", b"c"],
        [decimal.Decimal(1)] * 3 + [decimal.Decimal("NaN")] * 3,
        [np.datetime64("2024-01-01")] * 3 + [np.datetime64("NaT")] * 3,
    ],
)
def test_a_sample_that_has_no_group_is_refused(
    tmp_path: Path, groups: list[Any], reread: bool
) -> None:
    said = "groups: sample 3 has none: give it a group of its own, or leave the sample out"
    single = [*zip(X, LABELS, groups, strict=True)]
    for given in ((X, None, groups), (X, None, np.array(groups)), single):
        with pytest.raises(InputError) as error:
            from_python(given, ["x"], tmp_path / "d", reread=reread)
        assert str(error.value) == said
        shutil.rmtree(tmp_path / "d", ignore_errors=True)


@pytest.mark.parametrize("reread", [False, True])
def test_nan_beside_texts_is_no_group_either(tmp_path: Path, reread: bool) -> None:
    single = [*zip(X, LABELS, ["a", float("nan")] * 3, strict=True)]
    with pytest.raises(InputError, match=r"^groups: sample 1 has none"):
        from_python(single, ["x"], tmp_path / "d", reread=reread)


def test_long_ids_are_the_same_groups_alone_and_beside_others() -> None:
    names = [group_name(one) for one in group_array([2**63 + 1, 2**63 + 2, -5])]
    assert names == [
        group_name(one) for n in (2**63 + 1, 2**63 + 2, -5) for one in group_array([n])
    ]
    assert len({*names}) == 3


@pytest.mark.parametrize("reread", [False, True])
def test_a_series_of_samples_is_read_by_position(tmp_path: Path, reread: bool) -> None:
    pandas = pytest.importorskip("pandas")
    for index in ([5, 4, 3, 2, 1, 0], [7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 2, 2]):
        given = pandas.Series([*zip(X, LABELS, strict=True)], index=index)
        data = from_python(given, ["x"], tmp_path / "d", reread=reread)
        np.testing.assert_array_equal(data.inputs([0])["x"], X[:1])
        assert data.labels is not None
        assert data.labels.tolist() == LABELS.tolist()
        shutil.rmtree(tmp_path / "d", ignore_errors=True)


def test_a_group_may_be_a_tensor_and_a_missing_one_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    for number, last in enumerate((2.0, float("nan"))):
        groups = torch.tensor([1, 1, 1, 1, 1, last])
        single = [*zip(X, LABELS, groups, strict=True)]
        if number:
            with pytest.raises(InputError, match=r"^groups: sample 5 has none"):
                from_python(single, ["x"], tmp_path / f"{number}")
        else:
            data = from_python(single, ["x"], tmp_path / f"{number}")
            assert data.groups is not None
            assert data.groups.tolist() == [1, 1, 1, 1, 1, 2]


def test_an_archive_names_a_group_for_each_sample(tmp_path: Path) -> None:
    for number, groups in enumerate(([1.0, np.nan] * 3, ["a", ""] * 3)):
        np.savez(tmp_path / f"{number}.npz", x=X, groups=np.array(groups))
        with pytest.raises(InputError, match=r"^groups: sample 1 has none: give it a group of its"):
            open_npz(tmp_path / f"{number}.npz", ["x"])
    np.savez(tmp_path / "whole.npz", x=X, groups=np.array(["a", "b"] * 3))
    assert open_npz(tmp_path / "whole.npz", ["x"]).groups.tolist() == ["a", "b"] * 3  # type: ignore[union-attr]


def test_a_frame_isnt_taken_for_samples_column_by_column(tmp_path: Path) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(np.arange(4.0).reshape(2, 2))  # its columns are 0 and 1
    table = pyarrow.table({"b": [1.0, 2.0], "a": [3.0, 4.0]})
    for one in (frame, table, *table.to_batches()):
        first = one[[0]] if one is frame else one.select(["a"])
        for source in (
            one,
            (one, [0, 1]),
            {"x": one},
            ({"x": one}, [0, 1]),
            first,
            (first, [0, 1]),
        ):
            assert refused(source, tmp_path) == (
                "the data gave a data frame, but nothing states in which order the model takes its columns: give a "
                "pipeline that begins with the step row, or an array, as frame[columns].to_numpy()"
            )
    single = from_python({"x": frame[[0]]}, ["x"], tmp_path / "single", "the data")
    assert single.inputs([1])["x"].tolist() == [[2]]


def test_one_array_for_two_inputs_is_refused(tmp_path: Path) -> None:
    assert refused(X, tmp_path, ("a", "b")) == (
        "the model takes the inputs a, b; the data has one array without a name: give a mapping"
    )


def test_where_the_model_names_no_inputs_the_datas_own_names_count(tmp_path: Path) -> None:
    assert from_python({"a": X, "labels": LABELS}, [], tmp_path).names == ("a",)
    assert from_python([{"b": X[0], "a": 1}], [], tmp_path / "spool").names == ("b", "a")
    assert refused(X, tmp_path, ()) == (
        "the model doesn't name its inputs, and the data has one array without a name: give a "
        "mapping"
    )


def test_a_sample_that_lacks_an_input_is_named(tmp_path: Path) -> None:
    assert refused([{"a": 1, "b": 2}, {"a": 1}], tmp_path / "own", ()) == (
        "sample 1 has no input 'b', but the first has"
    )


def test_a_function_in_a_file_is_called(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def data():\n    for i in range(4): yield np.float32([i]), i\n"
        "whole = (np.zeros((3, 2)), [0, 1, 2])\n"
        "def nothing(): return None\n"
        "def empty(): return []\n"
    )
    assert len(call_function(f"{file}:data", ["x"], tmp_path / "a")) == 4
    assert len(call_function(f"{file}:whole", ["x"], tmp_path / "b")) == 3
    with pytest.raises(InputError) as error:
        call_function(f"{file}:nothing", ["x"], tmp_path / "c")
    assert str(error.value) == (
        f"{file}:nothing gave a NoneType; give a Dataset, arrays, or an iterable of samples"
    )
    with pytest.raises(InputError) as error:
        call_function(f"{file}:empty", ["x"], tmp_path / "d")
    assert str(error.value) == f"{file}:empty has no samples"
    with pytest.raises(InputError) as error:
        call_function(f"{tmp_path}/no.py:data", ["x"], tmp_path / "c")
    assert str(error.value) == f"no such file: {tmp_path}/no.py"


def test_labels_may_be_a_frame(tmp_path: Path) -> None:
    """Only the order of an input's columns isn't known."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.eye(3))
    dataset = from_python({"x": np.eye(3), "labels": frame}, ["x"], tmp_path / "a")
    assert np.array_equal(np.asarray(dataset.labels), np.eye(3))
    dataset = from_python({"x": np.eye(3), "labels@y": frame}, ["x"], tmp_path / "b")
    assert dataset.labels is not None


FAULTY = """
import numpy as np

def helper(rows):
    return rows[0][7]

def train():
    return {"x": np.zeros((4, helper([[1, 2]])))}

def samples():
    for i in range(4):
        yield np.ones(2), int("1" if i < 2 else "one")
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train", "IndexError at line 5 of faulty.py: list index out of range"),
        (
            "samples",
            "ValueError at line 12 of faulty.py: invalid literal for int() with base 10: 'one'",
        ),
    ],
)
def test_a_failure_of_the_users_function_is_told_in_one_line(
    name: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    with pytest.raises(InputError) as error:
        call_function(f"{file}:{name}", ["x"], tmp_path / "spool")
    assert str(error.value) == (
        f"{file}:{name} failed: {said}; call {name}() in Python to see the whole traceback"
    )
    assert not isinstance(error.value.__cause__, InputError)
