"""What a person sees of a sample, and the folder that holds it, whatever the data is made of."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.text import Tokenize
from hasten.optimization.labelling.answers import Form
from hasten.optimization.labelling.folder import LABELS, PAGE, write_folder
from hasten.optimization.labelling.samples import Questions, form_of, shown


def questions(
    dataset: Dataset, pipeline: Pipeline | None = None, rows: tuple[int, ...] = (1, 0)
) -> Questions:
    return Questions(
        places={f"s{row}": (place,) for place, row in enumerate(rows)},
        form=Form(3),
        dataset=dataset,
        rows=np.array(rows),
        pipeline=pipeline,
        sealed=100,
    )


def seen(asked: Questions, count: int = 2) -> list[dict[str, Any]]:
    return [shown(sample, count) for sample in asked.samples()]


def image_of(item: dict[str, Any]) -> Image.Image:
    _, _, data = item["picture"].partition("base64,")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_photograph_is_shown_from_its_file_upright_and_not_too_large(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo = Image.new("RGB", (1000, 500), (200, 10, 10))
        exif = photo.getexif()
        exif[0x0112] = 6  # to be turned by a quarter
        photo.save(tmp_path / f"{name}.jpg", exif=exif)
    asked = questions(ImageFolder(tmp_path, image_pipeline(size=8), "x"))
    first = seen(asked)[0]
    assert first.keys() == {"id", "row", "picture"}
    assert (first["id"], first["row"]) == ("s1", 2)
    assert image_of(first).size == (320, 640)
    assert image_of(seen(asked, 100_000)[0]).size == (80, 160)
    assert [sample.file for sample in asked.samples()] == [tmp_path / "b.jpg", tmp_path / "a.jpg"]


@pytest.mark.parametrize(
    ("shape", "size", "mode"),
    [
        ((3, 12, 16), (16, 12), "RGB"),
        ((1, 8, 8), (8, 8), "L"),
        ((12, 16, 3), (16, 12), "RGB"),
        ((28, 28), (28, 28), "L"),
    ],
)
def test_an_array_in_the_form_of_a_picture_is_shown_as_one(
    shape: tuple[int, ...], size: tuple[int, int], mode: str
) -> None:
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    picture = image_of(seen(questions(ArrayDataset({"x": x})))[0])
    assert (picture.size, picture.mode) == (size, mode)
    assert (np.asarray(picture).min(), np.asarray(picture).max()) == (0, 255)


def test_other_arrays_are_shown_as_their_first_numbers() -> None:
    x = {"x": np.arange(80.0).reshape(2, 40), "n": np.array([[1], [2]])}
    table = dict(seen(questions(ArrayDataset(x)))[0]["table"])
    assert table["n"] == "2"
    assert table["x"].startswith("40 41 42 ")
    assert table["x"].endswith(" 63 ... (float64 [40])")


def rows() -> tuple[Array, Pipeline]:
    step = Row(("age", "colour"), missing="nan", words=(("colour", ("red", "blue")),))
    return np.array([[31, 1], [np.nan, 0]], np.float32), Pipeline((step,))


def test_a_row_is_shown_as_its_table_had_it() -> None:
    values, pipeline = rows()
    asked = questions(ArrayDataset({"x": values}, missing=True), pipeline)
    assert [item["table"] for item in seen(asked)] == [
        [["age", ""], ["colour", "red"]],
        [["age", "31"], ["colour", "blue"]],
    ]


def test_tokens_are_shown_as_their_text() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "cat": 3, "sleeps": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    step = Tokenize(made.to_str(), length=5)
    texts = [step("a cat sleeps"), step("cat")]
    data = {
        name: np.stack([text[name] for text in texts]) for name in ("input_ids", "attention_mask")
    }
    asked = questions(ArrayDataset(data), Pipeline((step,)))
    assert [item["text"] for item in seen(asked)] == ["cat", "a cat sleeps"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / LABELS).open() as file:
        return list(csv.DictReader(file))


def test_a_folder_that_asks_the_same_again_is_left_as_it_is(tmp_path: Path) -> None:
    values, pipeline = rows()
    asked = questions(ArrayDataset({"x": values}, missing=True), pipeline)
    write_folder(tmp_path, asked, page=True, known={})
    assert table(tmp_path)[1] == {
        "id": "s0",
        "label": "",
        "row": "1",
        "age": "31.0",
        "colour": "blue",
    }
    filled = "id,label\ns0,2\n"
    (tmp_path / LABELS).write_text(filled)
    write_folder(tmp_path, asked, page=True, known={})
    assert (tmp_path / LABELS).read_text() == filled


def test_labels_of_an_earlier_run_are_taken_over_and_its_table_is_kept(tmp_path: Path) -> None:
    data = ArrayDataset({"x": np.zeros((5, 2))})
    write_folder(tmp_path, questions(data, rows=(3, 1, 0)), page=True, known={})
    before = "id,label\ns0,2\ns3,1\n"
    (tmp_path / LABELS).write_text(before)
    write_folder(tmp_path, questions(data, rows=(4, 0)), page=True, known={})
    assert [(row["id"], row["label"]) for row in table(tmp_path)] == [("s4", ""), ("s0", "2")]
    assert (tmp_path / "labels-before-1.csv").read_text() == before
    page = (tmp_path / PAGE).read_text()
    known = json.loads(page.split('id="data">')[1].split("</script>")[0])["labels"]
    assert known == {"s0": "2"}


def test_a_folder_of_a_table_alone_has_no_page(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "new", questions(ArrayDataset({"x": np.zeros((2, 2))})), page=False, known={}
    )
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"labels.csv", "asked.json"}


def test_labels_have_the_form_of_the_models_classes() -> None:
    scores, chosen = {"y": np.zeros((2, 4))}, {"y": np.array([3, 9])}
    names = ("calm", "glad", "odd", "sad")
    assert form_of(Top1(), scores) == Form(4)
    assert form_of(Top1(), scores, names) == Form(4, names)
    assert form_of(Top1(), chosen, names) == Form(4, names)
    assert form_of(Top1(), chosen).read("9") == 9
    cranes = form_of(Top1(), scores, ("crane", "hen", "crane", "owl"))
    assert cranes.names == ("crane (0)", "hen", "crane (2)", "owl")
    assert [cranes.read(one) for one in ("2", "crane (2)", "hen")] == [2, 2, 1]
    assert form_of(Auroc(), {"y": np.zeros(2)}, names) == Form(2)
    assert form_of(Regression(1.0), scores) == Form()
