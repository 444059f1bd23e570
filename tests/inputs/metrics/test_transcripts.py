"""Error rates of texts, by counts that a person can check."""

import json
from pathlib import Path

import numpy as np
import pytest

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.metrics import named_metric, parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.combined import AllOf
from hasten.inputs.metrics.transcripts import Cer, Wer
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.ctc import Ctc

pytest.importorskip("rapidfuzz")
ALPHABET = (*"abc", " ")


def path_of(text: str, blank: int = 0, classes: int = 5) -> Array:
    """Scores of a CTC that reads a text of the alphabet, with a blank after each character."""
    rows = []
    for character in text:
        own = ALPHABET.index(character)
        rows += [own + (own >= blank)] * 2 + [blank]
    rows += [blank] * (24 - len(rows))
    return np.eye(classes, dtype=np.float32)[rows]


def read(*texts: str, blank: int = 0) -> dict[str, Array]:
    return {"y": np.stack([path_of(text, blank) for text in texts])}


def test_characters_that_are_wrong_missing_or_too_many_count_alike() -> None:
    outputs = read("abca", "abb", "ab", "abcab", "cccccccc")
    labels = np.array(["abca", "abc", "abc", "abca", "ab"])
    scores = Cer(ALPHABET).score(outputs, {}, labels)
    assert scores.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 3 / 4, 0])


def test_words_count_as_a_whole() -> None:
    labels = np.array(["ab ca", "a b a"])
    assert Wer(ALPHABET).score(read("ab  cb", "a b"), {}, labels).tolist() == pytest.approx(
        [1 / 2, 2 / 3]
    )


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_the_blank_may_be_any_class(blank: int) -> None:
    labels = np.array(["abc a"])
    assert Cer(ALPHABET, blank).score(read("abc a", blank=blank), {}, labels).tolist() == [1]


def test_without_a_vocabulary_classes_are_compared() -> None:
    labels = np.array([[1, 2, -1], [2, -1, -1]])
    assert Cer().score(read("ab", "ab"), {}, labels).tolist() == [1, 0]
    ids = {"y": np.array([[3, 1, -1, -1], [-1, -1, -1, -1]])}
    assert Cer().score(ids, {}, np.array([[3, 1], [-1, -1]])).tolist() == [1, 1]


@pytest.mark.parametrize("alphabet", [ALPHABET, ("_", *ALPHABET), ()])
def test_labels_may_be_padded_with_the_blank(alphabet: tuple[str, ...]) -> None:
    assert Cer(alphabet).score(read("ab"), {}, np.array([[1, 2, 0, 0]])).tolist() == [1]
    last = np.array([[0, 1, 4, 4]])
    assert Cer(alphabet and ALPHABET, -1).score(read("ab", blank=4), {}, last).tolist() == [1]


def test_without_labels_the_exact_models_text_is_the_truth() -> None:
    assert Cer(ALPHABET).score(read("ab", ""), read("ab", "a"), None).tolist() == [1, 0]
    assert Cer(ALPHABET).unchanged(read("ab", "b"), read("ab", "a")).tolist() == [True, False]


def test_a_vocabulary_is_kept_in_the_metric(tmp_path: Path) -> None:
    lines, mapping = tmp_path / "v.txt", tmp_path / "vocab.json"
    lines.write_text("a\nb\nc\n \n")
    mapping.write_text(json.dumps({"<pad>": 0, "|": 4, "b": 2, "a": 1, "c": 3}))
    assert parse_metric(f"cer:{lines},blank=4@y") == Cer(ALPHABET, 4, "y")
    found = parse_metric(f"wer:{mapping}")
    assert found == Wer(("", "a", "b", "c", " "))
    assert from_record(Metric, to_record(found)) == found
    assert found.score(read("ab c"), {}, np.array(["ab c"])).tolist() == [1]


def test_a_pipelines_ctc_step_says_what_classes_are() -> None:
    pipeline = Pipeline((), (Ctc(("a", "b", "c", " "), 2, output="y"),))
    found = named_metric(["wer", "cer"]).around(pipeline)
    assert found == AllOf((Wer(ALPHABET, 2, "y"), Cer(ALPHABET, 2, "y")))
    assert Cer(("x",)).around(pipeline) == Cer(("x",))
    assert Cer().around(None) == Cer()


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        (
            Wer(),
            read("ab"),
            None,
            "wer counts words, so it needs the text of each class: wer:vocab.txt",
        ),
        (
            Cer(("a", "b")),
            read("ab"),
            None,
            "cer: the vocabulary has 2 pieces; the output is (n, 24, 5), so it takes 5, or 4 without the "
            "blank",
        ),
        (
            Cer(),
            read("ab"),
            np.array(["ab"]),
            "cer: the labels are text, but no vocabulary states the text of each class: name its "
            "file, as in "
            "cer:vocab.txt",
        ),
        (
            Cer(),
            read("ab"),
            np.zeros((1, 2)),
            "cer reads labels (n,) that are texts, or integers (n, length) padded with -1; got float64 "
            "(n, 2)",
        ),
        (
            Cer(),
            {"y": np.zeros((1, 4))},
            None,
            "cer reads scores (n, times, classes) or integers (n, length); the output is float64 (n, 4)",
        ),
        (
            Cer(blank=7),
            read("ab"),
            None,
            "cer: the blank is class 7; the output has 5 classes",
        ),
        (
            Cer(ALPHABET),
            {"y": np.array([[9, 1]])},
            None,
            "cer: the model returns class 9, but the vocabulary has 4 pieces",
        ),
    ],
)
def test_what_is_no_text_is_refused(
    metric: Metric, outputs: dict[str, Array], labels: Array | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        metric.score(outputs, outputs, labels)
    assert str(error.value) == message


@pytest.mark.parametrize("written", ["{", '{"a": 1}', '{"a": true, "b": 0}', "[1]"])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, written: str) -> None:
    file = tmp_path / "vocab.json"
    file.write_text(written)
    with pytest.raises(InputError) as error:
        parse_metric(f"cer:{file}")
    assert str(error.value) == (
        f"metric 'cer:{file}': the vocabulary {file} is neither a list of texts nor a mapping of "
        "texts to the classes 0, 1, 2, ..."
    )
