"""Texts as data: folders, files and Python's own, as tokens by the names of a model's inputs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.inputs.models.test_hugging_face_folders import TOKENIZER

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.source import open_data
from hasten.inputs.data.text_files import TextData
from hasten.inputs.models.source import load_with_data
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.multi_label import MultiLabel
from hasten.inputs.pipeline.text import Tokenize
from hasten.inputs.pipeline.threshold import Threshold

pytest.importorskip("tokenizers", reason="needs the extra text")
IDS = (TensorSpec("input_ids", "int64", ("batch", "length")),)
BOTH = (*IDS, TensorSpec("attention_mask", "int64", ("batch", "length")))
PLAIN = Pipeline((Tokenize(json.dumps(TOKENIZER)),))
NAMED = Pipeline(PLAIN.steps, (TopK(1, ("poor", "fine")),))
NUMBERS = [[2], [3, 3], [2, 3, 1]]
TEXTS = ["good", "bad bad", "good bad film"]


def opened(source: Any, pipeline: Pipeline = PLAIN, specs: tuple[TensorSpec, ...] = IDS) -> Dataset:
    return open_data(source, specs, pipeline)


def tokens(data: Dataset) -> list[list[int]]:
    return [data.inputs([place])["input_ids"][0].tolist() for place in range(len(data))]


def labels(data: Dataset) -> list[Any]:
    assert data.labels is not None
    found: list[Any] = data.labels.tolist()
    return found


def refused(source: Any, pipeline: Pipeline | None = PLAIN) -> str:
    with pytest.raises(InputError) as error:
        open_data(source, IDS, pipeline)
    return str(error.value)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folders(place: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (place / name).mkdir(parents=True)
        (place / name / "a.txt").write_text(TEXTS[number])
    return place


def test_a_folder_for_each_class_is_numbered_as_the_pipeline_names_the_classes(
    tmp_path: Path,
) -> None:
    data = opened(folders(tmp_path / "t", "fine", "poor", "unlabelled"), NAMED)
    assert isinstance(data, TextData)
    assert (tokens(data), labels(data), data.numbering) == (NUMBERS, [1, 0, NO_NUMBER], "")
    assert data.ragged
    assert data.shapes(2) == {"input_ids": (3,)}
    other = opened(str(tmp_path / "t"))
    assert isinstance(other, TextData)
    assert labels(other) == [0, 1, NO_NUMBER]
    assert other.numbering == (
        "classes were numbered by the order of the folders' names: 0 is 'fine', 1 is 'poor'"
    )
    assert (data.numbered, other.numbered) == ((), ("fine", "poor"))


def test_files_of_text_without_a_class_keep_their_groups(tmp_path: Path) -> None:
    for name, text in zip("ab", TEXTS, strict=False):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "groups.csv").write_text("a.txt,one\nb.txt,two\n")
    data = opened(tmp_path)
    assert (tokens(data), data.labels) == (NUMBERS[:2], None)
    assert data.groups is not None
    assert data.groups.tolist() == ["one", "two"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    # The tokenizer has no word for one, and takes it for another token.
    (tmp_path / "a.txt").write_text("good", "utf-8-sig")
    assert tokens(opened(tmp_path)) == NUMBERS[:1]
    (step,) = PLAIN.steps
    assert step("good".encode("utf-8-sig"))["input_ids"].tolist() == NUMBERS[0]


def test_each_line_of_a_file_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfgood\r\n\n  \nbad\xe2\x80\xa8bad\ngood bad film")
    data = opened(path)
    assert (tokens(data), data.labels) == (NUMBERS, None)


def test_the_columns_of_a_table_are_texts_labels_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('label,group,text\n1,x,good\n,x,"bad\nbad"\n0,y,good bad film\n')
    data = opened(path)
    assert (tokens(data), labels(data)) == (NUMBERS, [1, NO_NUMBER, 0])
    assert data.groups is not None
    assert data.groups.tolist() == ["x", "x", "y"]

    path.write_text("text,stars,id\ngood,4.5,7\nbad bad,,8\n")
    assert labels(opened(f"{path}:stars"))[0] == 4.5
    assert np.isnan(labels(opened(f"{path}:stars"))[1])
    path.write_text("text,stars\ngood,poor\nbad bad,fine\n")
    assert labels(opened(path, NAMED)) == [0, 1]


def test_a_quotation_mark_without_its_end_takes_no_texts_with_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('label,text\n1,good\n0,"bad bad\n1,good bad film\n')
    said = "a quotation mark has no end, or something other than a comma follows one: write a mark inside a cell twice"
    assert refused(path) == f"{path}: lines 3 to 4: {said}"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_text("good")
    table = tmp_path / "t" / "groups.csv"
    table.write_text('a.txt,"one\nb.txt,two\n')
    assert refused(tmp_path / "t") == f"{table}: lines 1 to 2: {said}"


def test_lines_of_json_hold_texts_or_pairs_of_them(tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "fine"}, {"text": "bad", "text_pair": "bad", "label": None}]
    data = opened(lines(tmp_path / "t.jsonl", rows), NAMED)
    assert (tokens(data), labels(data)) == (NUMBERS[:2], [1, NO_NUMBER])
    data = opened(lines(tmp_path / "t.jsonl", ["good", "bad bad"]))
    assert (tokens(data), data.labels) == (NUMBERS[:2], None)


def test_texts_of_python_are_taken_in_each_form_that_arrays_are(tmp_path: Path) -> None:
    written = tmp_path / "mine.py"
    written.write_text(
        "import numpy as np\n"
        f"def texts(): return {TEXTS!r}, [1, 0, 1]\n"
        f"def yielded(): yield from zip({TEXTS!r}, [1, 0, 1])\n"
        "def arrays(): yield from (np.array([2, 3]), np.array([3]))\n"
    )
    forms = [
        list(zip(TEXTS, (1, 0, 1), strict=True)),
        (TEXTS, np.array([1, 0, 1])),
        (np.array(TEXTS), [1, 0, 1]),
        f"{written}:texts",
        f"{written}:yielded",
        [{"text": text, "label": label} for text, label in zip(TEXTS, (1, 0, 1), strict=True)],
    ]
    for form in forms:
        data = opened(form)
        assert (tokens(data), labels(data)) == (NUMBERS, [1, 0, 1])
    assert tokens(opened(f"{written}:arrays")) == [[2, 3], [3]]
    grouped = opened([("good", 1, "x"), ("bad bad", 0, "y")])
    assert grouped.groups is not None
    assert grouped.groups.tolist() == ["x", "y"]
    assert tokens(opened([["good", "bad"]])) == [[2, 3]]


def test_a_frame_with_a_column_of_texts_is_taken() -> None:
    pandas = pytest.importorskip("pandas")
    data = opened(pandas.DataFrame({"text": TEXTS, "label": [1, 0, 1]}))
    assert (tokens(data), labels(data)) == (NUMBERS, [1, 0, 1])


def test_texts_and_labels_of_pandas_are_paired_by_position() -> None:
    pandas = pytest.importorskip("pandas")
    whole = pandas.DataFrame({"text": TEXTS, "label": [0, 1, 2], "group": ["x", "y", "z"]})
    mixed = whole.iloc[[2, 0, 1]]
    data = opened((mixed.text, mixed.label, mixed.group))
    assert (tokens(data), labels(data)) == ([NUMBERS[2], NUMBERS[0], NUMBERS[1]], [2, 0, 1])
    assert data.groups is not None
    assert data.groups.tolist() == ["z", "x", "y"]
    assert tokens(opened(mixed.text[1:])) == NUMBERS[:2]
    assert labels(opened((mixed.text[1:], [5, 6]))) == [5, 6]


def test_as_many_labels_and_groups_as_texts_are_needed() -> None:
    assert refused((TEXTS, [0, 1])) == (
        "the data: there are 3 texts, but 2 labels: give labels in the order of the texts, one for each"
    )
    assert refused((TEXTS, [0, 1, 0], ["x"] * 4)) == (
        "the data: there are 3 texts, but 4 groups: give groups in the order of the texts, one for each"
    )
    for noun, source in (("labels", (TEXTS, "pat")), ("groups", (TEXTS, [0, 1, 0], "pat"))):
        assert refused(source) == (
            f"the data: the {noun} are the text 'pat': give a list of one for each text"
        )


@pytest.mark.parametrize("position", [None, 0, 1])
def test_folders_and_files_give_the_classes_of_a_threshold_the_same_numbers(
    tmp_path: Path, position: int | None
) -> None:
    named = Pipeline(PLAIN.steps, (Threshold(labels=("no", "yes"), position=position),))
    rows = [{"text": "good", "label": "no"}, {"text": "bad bad", "label": "yes"}]
    file = opened(lines(tmp_path / "t.jsonl", rows), named)
    folder = opened(folders(tmp_path / "t", "no", "yes"), named)
    assert tokens(file) == tokens(folder) == NUMBERS[:2]
    assert labels(file) == labels(folder) == ([1, 0] if position == 0 else [0, 1])


def test_lists_are_labels_where_the_classes_have_names(tmp_path: Path) -> None:
    named = Pipeline(PLAIN.steps, (MultiLabel(labels=("poor", "fine", "odd")),))
    given = [[1, 0, 1], [0, 1, 0]]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, given, strict=False)]
    assert labels(opened(lines(tmp_path / "t.jsonl", rows), named)) == given
    assert labels(opened((TEXTS[:2], np.array(given)), named)) == given
    gaps = [np.ma.masked_equal([1, 0, 9], 9), np.array([0, 1, 0])]
    assert labels(opened((TEXTS[:2], gaps), named)) == [[1, 0, NO_NUMBER], [0, 1, 0]]
    path = lines(tmp_path / "t.jsonl", [{"text": "good", "label": {"fine": 1}}])
    for pipeline in (named, PLAIN):
        assert refused(path, pipeline) == (
            f"{path}: row 1: the label is an object: give a number, the name of a class, or a list of numbers"
        )


@pytest.mark.seconds
def test_a_function_that_yields_tokens_gives_each_of_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")

    class Scores(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            ids = input_ids if attention_mask is None else input_ids * attention_mask
            return ids.float()

    written = tmp_path / "mine.py"
    written.write_text(
        "import numpy as np\n"
        "def yielded():\n"
        "    for label in range(4):\n"
        "        ids = np.array([label, 1])\n"
        "        yield {'input_ids': ids, 'attention_mask': np.ones_like(ids)}, label\n"
    )
    _, data = load_with_data(Scores(), f"{written}:yielded", PLAIN, (), tmp_path)
    assert labels(data) == [0, 1, 2, 3]


def test_a_model_gets_the_inputs_that_it_takes_and_arrays_stay_data() -> None:
    data = opened(TEXTS, specs=BOTH)
    assert data.inputs([1])["attention_mask"].tolist() == [[1, 1]]
    assert opened(TEXTS, specs=()).names == ("input_ids", "attention_mask", "token_type_ids")
    padded = Pipeline((Tokenize(json.dumps(TOKENIZER), 4),))
    assert not opened(TEXTS, padded).ragged
    arrays = opened({"input_ids": np.array([[2, 3]])})
    assert not isinstance(arrays, TextData)
    assert tokens(arrays) == [[2, 3]]


def test_texts_and_their_tokens_are_the_same_samples() -> None:
    given = {"input_ids": [np.array(row) for row in NUMBERS]}
    text, array = opened(TEXTS), opened(given)
    assert [text.content_hash(i) for i in range(3)] == [array.content_hash(i) for i in range(3)]


def test_texts_that_are_read_again_are_the_same() -> None:
    data = open_data(TEXTS, IDS, PLAIN, reread=True)
    assert tokens(data) == tokens(data) == NUMBERS


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    places = [folders(tmp_path / "t", "fine"), lines(tmp_path / "t.jsonl", TEXTS)]
    for place in places:
        assert refused(place, None) == (
            f"{place} holds texts, but nothing states how they become tokens: give a pipeline with the step "
            "tokenize, or a model's folder with a tokenizer.json that fits in a bundle"
        )


def test_what_cant_be_read_as_texts_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert refused(lines(path, [{"review": "good", "stars": 4}])) == (
        f"{path} has no column 'text' with the texts: it has 'review', 'stars'; rename the one that holds them"
    )
    assert refused(lines(path, [{"text": "good", "stars": 4, "id": 7}])) == (
        f"{path} has the columns 'stars', 'id' in addition to the text: name the label, as in "
        'texts.csv:stars, or call its column "label"'
    )
    assert refused(lines(path, [{"text": "good", "label": "fine"}])) == (
        f"{path}: the labels are words, such as 'fine', and nothing says which class each is: give the "
        "classes' numbers, or a pipeline whose step after the model has labels"
    )
    assert refused(lines(path, [{"text": "good", "label": "odd"}]), NAMED) == (
        f"{path}: row 1: the label must be one of 'poor', 'fine': got 'odd'"
    )
    assert refused(lines(path, [{"text": "good"}, {"text": None}])) == (
        f"{path}: row 2 has no text: leave it out"
    )
    assert refused(lines(path, [["good", 1]])) == (
        f'{path}: line 1 must be an object with the key "text": got ["good", 1]'
    )
    assert refused(lines(path, ["good", " "])) == f"{path}: text 2 has no tokens: leave it out"
    assert refused(lines(path, [])) == f"{path} has no texts"
    assert refused([("good", 1), ("bad", 0, "x")]) == (
        "the data: sample 1 has 3 parts; give a text, (text, label) or (text, label, group), and the "
        "same for each sample"
    )
    path.write_text('{"text": \n')
    assert refused(path).startswith(f"{path}: line 1 can't be read as JSON: ")


def test_a_model_with_another_input_says_what_the_tokenizer_gives() -> None:
    with pytest.raises(InputError) as error:
        open_data(TEXTS, (*IDS, TensorSpec("position_ids", "int64", ("n", 3))), PLAIN)
    assert str(error.value) == (
        "the model takes the inputs input_ids, position_ids, but the step tokenize gives input_ids, "
        "attention_mask, token_type_ids: give their names as its settings ids, mask and types, or "
        "tokenize in your own code and give arrays"
    )


def test_labels_and_groups_that_cant_be_used_are_said_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for group in ({"a": 1}, [1]):
        rows = [{"text": "good", "group": "x"}, {"text": "bad", "group": group}]
        assert refused(lines(path, rows)) == (
            f"{path}: row 2: the group must be a text, a number or a date: got {group!r}"
        )
    assert refused(
        lines(path, [{"text": "good", "label": "5"}, {"text": "bad", "label": 1 << 70}])
    ) == (f"{path}: row 2: the label {1 << 70} has more than 64 bits: give smaller numbers")
    assert refused(lines(path, [{"text": "good", "label": [[1], [1, 2]]}])) == (
        f"{path}: row 1: the label has lists of different lengths: give them one length"
    )


def test_a_sample_without_a_group_is_said_where_others_have_one(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,group\ngood,x\nbad bad,\n")
    assert refused(table) == (
        f"{table}: row 2 has no group: name one, leave the row out, or rename the column 'group' if it isn't about "
        "rows that belong together"
    )
    for group in (None, float("nan"), ""):
        for source in ((TEXTS[:2], None, ["x", group]), [("good", 1, "x"), ("bad", 0, group)]):
            assert refused(source) == (
                "the data: row 2 has no group: name one, or leave the row out"
            )


class HuggingFaceRows:
    """Rows as a data set of Hugging Face has them: by position, with the kinds of its columns."""

    def __init__(self, rows: list[dict[str, Any]], **features: Any) -> None:
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Fine", "POOR"], [0, 1, -1]),
        (["poor", "fine"], [1, 0, -1]),
        (["bad", "good"], [1, 0, -1]),
        (["fine", "fine"], [1, 0, -1]),
        (None, [1, 0, -1]),
    ],
)
def test_classes_that_a_data_set_names_in_another_order_get_the_models_numbers(
    names: list[str] | None, found: list[int]
) -> None:
    given = [1, 0, -1]
    rows = [{"text": t, "label": n} for t, n in zip(TEXTS, given, strict=True)]
    kind = SimpleNamespace(names=names) if names else SimpleNamespace(dtype="int64")
    source = HuggingFaceRows(rows, text=SimpleNamespace(dtype="string"), label=kind)
    assert labels(opened(source, NAMED)) == found
    assert labels(opened(source, PLAIN)) == given
    torch = pytest.importorskip("torch")
    for form in np.array, torch.tensor:  # as `with_format` gives them
        formed = [row | {"label": form(row["label"])} for row in rows]
        assert labels(opened(HuggingFaceRows(formed, label=kind), NAMED)) == found


def test_a_masked_label_of_a_text_is_a_missing_one() -> None:
    masked = np.ma.masked_equal([1, 9, 0], 9)
    for pipeline in (PLAIN, NAMED):
        for source in ((TEXTS, masked), (TEXTS, [*masked]), [*zip(TEXTS, masked, strict=True)]):
            assert labels(opened(source, pipeline)) == [1, NO_NUMBER, 0]
    named = np.ma.masked_equal(["fine", "-", "poor"], "-")
    assert labels(opened((TEXTS, named), NAMED)) == [1, NO_NUMBER, 0]


def test_decimal_labels_with_gaps_are_classes_where_a_step_chooses_among_them() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": [0, None, 1]})
    for step in (TopK(1), Threshold(position=1)):
        assert labels(opened(frame, Pipeline(PLAIN.steps, (step,)))) == [0, NO_NUMBER, 1]
    np.testing.assert_array_equal(labels(opened(frame)), [0, np.nan, 1])
    assert labels(opened(frame.astype({"label": "Int64"}))) == [0, NO_NUMBER, 1]


def test_a_list_of_a_text_and_the_name_of_a_class_isnt_taken_for_a_pair() -> None:
    assert refused([["good", "fine"], ["bad bad", "poor"]], NAMED) == (
        "the data: each sample is a list of two texts, which are a pair, but each second text is the name of "
        "a class: give a label as (text, label), in a tuple"
    )
    assert tokens(opened([["good", "bad"], ["bad", "fine"]], NAMED))[0] == [2, 3]


def test_a_table_with_a_column_twice_or_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,text,label\ngood,bad,0\n")
    assert refused(path) == f"{path} has the column 'text' twice: name each column once"
    path.write_text(f"text,label\n{'good ' * 30_000},0\n")
    assert refused(path) == (
        f"{path}: line 2: a value has more than 131,072 characters, or a quotation mark has no end: write a mark "
        "inside a cell twice, and give texts of this length as .jsonl"
    )


def test_a_folder_without_texts_is_refused_as_one_of_texts(tmp_path: Path) -> None:
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "a.md").write_text("good")
    assert refused(tmp_path) == (
        f"{tmp_path} has no texts: give a folder of .txt files, or the path of a .txt, .csv or .jsonl file"
    )
