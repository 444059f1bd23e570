"""Words with tags as data: the text that a model gets, and the label of each of its tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.inputs.data.test_text_files import IDS, HuggingFaceRows, lines
from tests.inputs.pipeline.test_text import CONTENT, tokenizers

from hasten.errors import InputError
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.text import Tokenize

TAGS = ("O", "B-ANIMAL", "I-ANIMAL")
PIPELINE = Pipeline((Tokenize(CONTENT, pad=False),), (Entities(TAGS),))
ROWS: list[dict[str, Any]] = [
    {"tokens": ["The", "cats", "sat"], "ner_tags": ["O", "B-ANIMAL", "O"]},
    {"tokens": ["mat", "cats"], "ner_tags": [2, 1]},
]
# [CLS] the cat ##s sat [SEP] and [CLS] mat cat ##s [SEP], filled up to the longest.
LABELS = [[-100, 0, 1, -100, 0, -100], [-100, 2, 1, -100, -100, -100]]


def opened(source: Any, pipeline: Pipeline = PIPELINE) -> Any:
    return open_data(source, IDS, pipeline)


def refused(source: Any, pipeline: Pipeline = PIPELINE) -> str:
    with pytest.raises(InputError) as error:
        opened(source, pipeline)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_words_tag_is_the_label_of_its_first_token(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", ROWS)
    for source in (path, f"{path}:ner_tags", ROWS):
        data = opened(source)
        assert data.labels.tolist() == LABELS
        assert data.inputs([0])["input_ids"].tolist() == [[2, 4, 5, 7, 6, 3]]


def test_tags_that_a_data_set_names_in_another_order_get_the_models_numbers() -> None:
    rows = [{"tokens": row["tokens"]} for row in ROWS]
    rows = [{**row, "tags": tags} for row, tags in zip(rows, [[2, 0, 2], [1, 0]], strict=True)]
    kind = SimpleNamespace(feature=SimpleNamespace(names=["B-ANIMAL", "I-ANIMAL", "O"]))
    assert opened(HuggingFaceRows(rows, tags=kind)).labels.tolist() == LABELS


def test_words_are_data_without_tags_too_and_may_belong_together() -> None:
    data = opened([{"words": row["tokens"], "group": "a"} for row in ROWS])
    assert data.labels is None
    assert len(data) == 2
    assert list(data.groups) == ["a", "a"]


def test_words_cut_off_and_words_without_tokens_have_no_label() -> None:
    short = Pipeline((Tokenize(CONTENT, 4),), PIPELINE.after)
    assert opened(ROWS, short).labels.tolist() == [[-100, 0, 1, -100], [-100, 2, 1, -100]]
    odd = [{"tokens": ["The", "", "\u200b", "sat"], "tags": [0, 1, 1, 2]}]
    assert [one for one in opened(odd).labels[0].tolist() if one >= 0] == [0, 2]


def test_tokens_that_begin_with_a_space_get_their_words_label() -> None:
    built = tokenizers.Tokenizer(tokenizers.models.BPE({"Ġ": 0, "c": 1, "a": 2, "t": 3}, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise = Pipeline((Tokenize(built.to_str(), pad=False),), PIPELINE.after)
    data = opened([{"tokens": ["cat", "cat"], "tags": ["O", "B-ANIMAL"]}], bytewise)
    assert data.labels.tolist() == [[0, -100, -100, 1, -100, -100, -100]]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refused([{"tokens": ["a", "b"], "tags": ["O"]}]) == (
        "the data: row 1 has 2 words, but 1 tag in 'tags': give a tag for each word, in a list"
    )
    assert "row 1 has 1 word, but 'O' in 'tags'" in refused([{"tokens": ["a"], "tags": "O"}])
    named = "the tag must be one of 'O', 'B-ANIMAL', 'I-ANIMAL', or its number: got "
    for tag in ("B-CITY", 3, 1.5, True, [0], {"a": 1}, 10**400):
        said = refused([ROWS[0], {"tokens": ["a"], "ner_tags": [tag]}])
        assert said == f"the data: row 2: {named}{tag!r:.80}"
    path = lines(tmp_path / "t.jsonl", [{"tokens": ["a"], "tags": [0]}, {"tokens": "a b"}])
    assert refused(path) == (
        f"{path}: row 2: 'tokens' must be a list of words: got 'a b'; a .jsonl file can have lists"
    )
    plain = Pipeline(PIPELINE.steps)
    assert "row 1: the tag must be the number of a class, unless" in refused([ROWS[0]], plain)
    assert "got 2147483648" in refused([{"tokens": ["a"], "tags": [2**31]}], plain)
    cut = Pipeline((Tokenize(CONTENT, 2 + 2),), PIPELINE.after)
    lost = [{"tokens": ["", "\u200b"], "tags": [1, 1]}, {"tokens": ["the"], "tags": [None]}]
    assert "no token of the tokenizer begins in any word that has a tag" in refused(lost, cut)


def test_a_tag_of_several_classes_is_refused() -> None:
    twice = Pipeline(PIPELINE.steps, (Entities((*TAGS, TAGS[1])),))
    rows = [{"tokens": ["a", "b"], "tags": ["O", TAGS[1]]}]
    assert refused(rows, twice) == (
        "the data: row 1: several classes are called 'B-ANIMAL': give tags as numbers of classes"
    )


def test_a_tag_may_be_missing() -> None:
    missing = [{"tokens": ["the", "cat", "sat"], "tags": [None, -100, float("nan")]}, ROWS[1]]
    rows = [{"tokens": one["tokens"], "tags": one.get("tags", [2, 1])} for one in missing]
    assert opened(rows).labels.tolist() == [[-100] * 5, LABELS[1][:5]]


def test_words_may_begin_with_spaces_and_marks_that_the_tokenizer_drops() -> None:
    odd = [{"tokens": [" the", "\u200bcats "], "tags": [1, 2]}]
    assert opened(odd).labels.tolist() == [[-100, 1, 2, -100, -100]]


def test_words_come_from_data_frames_and_tables() -> None:
    pandas = pytest.importorskip("pandas")
    arrow = pytest.importorskip("pyarrow")
    tags = [["O", "B-ANIMAL", "O"], ["I-ANIMAL", "B-ANIMAL"]]
    frame = pandas.DataFrame({"tokens": [one["tokens"] for one in ROWS], "ner_tags": tags})
    arrays = frame.assign(tokens=frame.tokens.map(np.array), ner_tags=frame.ner_tags.map(np.array))
    for table in (frame, frame.iloc[::-1].iloc[::-1], arrays, arrow.Table.from_pandas(frame)):
        assert opened(table).labels.tolist() == LABELS
