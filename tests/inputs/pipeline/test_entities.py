"""Entities of a text: words, spans and tags that a person can check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.inputs.pipeline.test_text import CONTENT, tokenizers

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, PostStep
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.tags import entities
from hasten.inputs.pipeline.text import Tokenize

TAGS = ("O", "B-ANIMAL", "I-ANIMAL", "B-PLACE", "I-PLACE")


def scores_of(*classes: int, high: float = 4.0) -> Array:
    return np.eye(len(TAGS), dtype=np.float32)[list(classes)] * np.float32(high)


def told(text: Any, *classes: int, step: Tokenize | None = None) -> Any:
    pipeline = Pipeline((step or Tokenize(CONTENT, pad=False),), (Entities(TAGS),))
    sample, origin = pipeline.prepared(text)
    assert len(sample["input_ids"]) == len(classes)
    return pipeline.decided({"y": scores_of(*classes)}, origin)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A I-A O B-B", [("A", 0, 2), ("B", 3, 4)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("I-A I-A I-B", [("A", 0, 2), ("B", 2, 3)]),
        ("O I-A O", [("A", 1, 2)]),
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("B-A I-A E-A I-A", [("A", 0, 3), ("A", 3, 4)]),
        ("S-A S-A U-B L-B", [("A", 0, 1), ("A", 1, 2), ("B", 2, 3), ("B", 3, 4)]),
        ("B_A I_A", [("A", 0, 2)]),
        ("NOUN NOUN VERB", [("NOUN", 0, 2), ("VERB", 2, 3)]),
        ("I", [("I", 0, 1)]),
        ("", []),
    ],
)
def test_tags_become_entities(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_an_entity_is_told_with_its_place_in_the_text() -> None:
    # [CLS] the cat ##s sat the mat [SEP]: the class of "##s" doesn't count, its characters do.
    found = told("The cats  sat the mat", 3, 0, 1, 4, 2, 3, 4, 1)
    scores = [one.pop("score") for one in found]
    assert found == [
        {"entity": "ANIMAL", "text": "cats  sat", "start": 4, "end": 13},
        {"entity": "PLACE", "text": "the mat", "start": 14, "end": 21},
    ]
    assert scores == pytest.approx([np.exp(4) / (np.exp(4) + 4)] * 2)


def test_padding_and_special_tokens_are_no_entities() -> None:
    padded = told("the cat", 1, 1, 2, 1, 1, 1, step=Tokenize(CONTENT, 6))
    assert [one["text"] for one in padded] == ["the cat"]
    assert told("", 1, 1) == []


def test_a_tokenizer_whose_tokens_begin_with_a_space_gives_entities_without_it() -> None:
    built = tokenizers.Tokenizer(
        tokenizers.models.BPE({"Ġ": 0, "c": 1, "a": 2, "t": 3, "s": 4}, [])
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = told("cat cat", 0, 0, 0, 1, 0, 0, 0, step=Tokenize(built.to_str(), pad=False))
    assert [(one["text"], one["start"], one["end"]) for one in found] == [("cat", 4, 7)]


def spaced(split: bool = True) -> Tokenize:
    """Return a tokenizer whose tokens are letters, and "▁" for a space, as SentencePiece has it."""
    letters = {"▁": 0, **{letter: n for n, letter in enumerate("NewYork,ts", 1)}}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=split, prepend_scheme="never")
    return Tokenize(built.to_str(), pad=False)


@pytest.mark.parametrize("split", [True, False])
def test_words_are_divided_at_spaces_even_if_the_tokenizer_does_not(split: bool) -> None:
    # N e w _ Y o r k: a space that is a part of the word after it has its class.
    found = told("New York", 1, 0, 0, 2, 0, 0, 0, 0, step=spaced(split))
    assert [(one["entity"], one["text"]) for one in found] == [("ANIMAL", "New York")]


def test_spaces_that_belong_to_no_word_do_not_divide_an_entity() -> None:
    letters = {"Ġ": 0, **{letter: n for n, letter in enumerate("NewYork", 1)}}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    step = Tokenize(built.to_str(), pad=False)
    # Of two spaces, the first is a word of its own to this tokenizer, and the last one, too.
    found = told("New  York ", 1, 0, 0, 3, 2, 0, 0, 0, 0, 3, step=step)
    assert [(one["text"], one["start"], one["end"]) for one in found] == [("New  York", 0, 9)]


def test_the_step_comes_back_from_its_record() -> None:
    step = Entities(TAGS, "logits")
    assert from_record(PostStep, to_record(step)) == step


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    step = Entities(TAGS)
    with pytest.raises(InputError, match=r"entities needs one text that the step tokenize read"):
        step({"y": scores_of(0)}, Origin())
    with pytest.raises(InputError, match=r"entities needs one text that the step tokenize read"):
        told(["the", "cat"], 0, 0, 0, 0, 0)  # a pair has two texts
    _, origin = Pipeline((Tokenize(CONTENT, pad=False),), (step,)).prepared("the cat")
    with pytest.raises(InputError, match=r"got scores of 3 tokens; the text has 4"):
        step({"y": scores_of(0, 0, 0)}, origin)
    with pytest.raises(
        InputError, match=r"needs scores of shape \[batch, tokens, 5\]; got \[4, 2\]"
    ):
        step({"y": np.zeros((4, 2), np.float32)}, origin)
    nothing = scores_of(0, 0, 0, 0)
    nothing[1, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        step({"y": nothing}, origin)
    with pytest.raises(InputError, match=r"needs scores of shape \[batch, tokens, 5\]; the model"):
        step.check([TensorSpec("y", "float32", ("batch", "tokens", 3))])
    with pytest.raises(InputError, match=r"entities\.labels needs the tag of each class"):
        Entities(("O",))
