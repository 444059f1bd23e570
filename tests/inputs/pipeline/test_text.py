import base64
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.records import from_record, to_record
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline import text as steps
from hasten.inputs.pipeline import token_limit
from hasten.inputs.pipeline.base import Pipeline, Step, as_request
from hasten.inputs.pipeline.config import from_yaml
from hasten.inputs.pipeline.memory import making_room
from hasten.inputs.pipeline.text import Tokenize
from hasten.testing.step_tests import StepTests

tokenizers: Any = pytest.importorskip("tokenizers", reason="needs tokenizers: hasten[text]")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "mat")


def small_tokenizer(**options: Any) -> str:
    """Return the tokenizer.json of a WordPiece tokenizer that brackets texts as BERT does."""
    numbers = {word: i for i, word in enumerate(WORDS)}
    built = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token="[UNK]"))
    built.normalizer = tokenizers.normalizers.BertNormalizer()
    built.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    built.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return json.dumps({**json.loads(built.to_str()), **options})


CONTENT = small_tokenizer()


class TestTokenize(StepTests):
    step = Tokenize(CONTENT, 8)
    sample = b"the cat"


def test_a_long_text_is_tokenized_as_a_short_one_is_while_other_threads_run() -> None:
    step, text = Tokenize(CONTENT, pad=False), "the cat sat on mats " * 20_000
    for value in (text, [text, "the mat"]):
        found: list[Any] = []
        started, turns = threading.Event(), 0

        def work(value: Any = value, found: list[Any] = found, on: Any = started) -> None:
            on.set()
            found.append(step(value))

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        while thread.is_alive():
            turns += 1
            thread.join(0.001)
        # Where the library keeps Python's lock, no other thread runs before the text is done.
        assert turns > 20
        texts = [value] if isinstance(value, str) else value
        encoded = step._opened.encode(*texts)
        assert found[0]["input_ids"].tolist() == encoded.ids
        assert found[0]["token_type_ids"].tolist() == encoded.type_ids
        assert found[0]["attention_mask"].tolist() == encoded.attention_mask


def refused(make: Any) -> str:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_text_becomes_numbers_a_mask_and_types() -> None:
    sample = Tokenize(CONTENT, 8)("The cats dance")
    assert {name: array.tolist() for name, array in sample.items()} == {
        "input_ids": [2, 4, 5, 7, 1, 3, 0, 0],
        "attention_mask": [1, 1, 1, 1, 1, 1, 0, 0],
        "token_type_ids": [0] * 8,
    }
    assert {array.dtype for array in sample.values()} == {np.dtype("int64")}


def test_long_texts_are_cut_and_short_ones_filled_up_only_where_asked() -> None:
    assert Tokenize(CONTENT, 4)("the cat sat")["input_ids"].tolist() == [2, 4, 5, 3]
    assert Tokenize(CONTENT, 8, pad=False)("the")["input_ids"].tolist() == [2, 4, 3]
    assert Tokenize(CONTENT)("the " * 50)["input_ids"].shape == (52,)


def test_two_texts_differ_by_type() -> None:
    sample = Tokenize(CONTENT, dtype="int32")(["the cat", "sat"])
    assert sample["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert sample["input_ids"].dtype == np.int32


def test_texts_bytes_and_files_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat")
    step = Tokenize(CONTENT)
    wanted = step("the cat")["input_ids"].tolist()
    assert step(b"the cat")["input_ids"].tolist() == wanted
    assert step(tmp_path / "a.txt")["input_ids"].tolist() == wanted


def test_a_model_gets_what_it_has_inputs_for_by_its_own_names() -> None:
    inputs = [
        TensorSpec("tokens", "int64", ("batch", "length")),
        TensorSpec("attention_mask", "int64", ("batch", "length")),
    ]
    prepared, origin = Pipeline((Tokenize(CONTENT, ids="tokens"),)).prepared("the cat")
    request = as_request(prepared, inputs)
    assert list(request) == ["tokens", "attention_mask"]
    assert request["tokens"].tolist() == [[2, 4, 5, 3]]
    assert origin.height == 0


def test_the_files_own_length_counts_but_not_its_padding() -> None:
    truncation = {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    padding = {
        "strategy": {"Fixed": 2**40},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 8,
        "pad_type_id": 0,
        "pad_token": "mat",
    }
    content = small_tokenizer(truncation={**truncation, "max_length": 4}, padding=padding)
    assert Tokenize(content)("the cat sat")["input_ids"].tolist() == [2, 4, 5, 3]
    assert Tokenize(content, 5)("the")["input_ids"].tolist() == [8, 8, 2, 4, 3]


def test_a_tokenizer_comes_back_from_a_record_and_from_a_pipeline_file(tmp_path: Path) -> None:
    step = Tokenize(CONTENT, 8)
    assert from_record(Step, to_record(step)) == step
    (tmp_path / "tokenizer.json").write_text(CONTENT)
    (tmp_path / "a.yaml").write_text("before: [{tokenize: {tokenizer: tokenizer.json, length: 8}}]")
    assert from_yaml(tmp_path / "a.yaml") == Pipeline((step,))


def test_the_vocabulary_counts_every_token() -> None:
    assert Tokenize(CONTENT).vocabulary == len(WORDS)


def test_what_can_not_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Tokenize(CONTENT)
    assert refused(lambda: Tokenize(CONTENT, -1)) == (
        "tokenize.length=-1: give 0 to 1048576 tokens"
    )
    assert refused(lambda: Tokenize(CONTENT, 3)("the")) == (
        "tokenize.length=3: the tokenizer adds up to 3 special tokens; give more"
    )
    assert refused(lambda: replace(step, types="input_ids")) == (
        "tokenize gives three inputs; their names are input_ids, attention_mask, input_ids"
    )
    assert refused(lambda: Tokenize("{}")("the")).startswith(
        "tokenize.tokenizer can't be read by the tokenizer: "
    )
    assert refused(lambda: Tokenize(CONTENT, 8, pad_token="<p>")("the")) == (
        "tokenize.pad_token: the tokenizer has no token '<p>'"
    )
    assert refused(lambda: step(3)) == "tokenize needs a text, or two texts; got int"
    assert refused(lambda: step(["a", 3])) == "tokenize needs a text, or two texts; got int"
    assert refused(lambda: step(b"\xff")).startswith("the text isn't UTF-8")
    monkeypatch.setattr(steps, "MAX_TOKENIZER_BYTES", 10)
    assert refused(lambda: Tokenize(CONTENT)) == (
        f"tokenize.tokenizer takes {len(json.dumps(CONTENT))} bytes in a bundle's manifest, which has "
        "room for 10: tokenize in your own code, and give arrays"
    )


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert refused(lambda: Tokenize(CONTENT)("the")) == (
        "the step tokenize needs the extra: pip install 'hasten[text]'"
    )


def test_a_tokenizer_written_over_many_lines_fits_a_manifest() -> None:
    wide = json.dumps(json.loads(CONTENT), indent=2)
    assert "\n" in wide
    step = Tokenize(wide)
    assert step.tokenizer.isprintable()
    assert json.loads(step.tokenizer) == json.loads(CONTENT)


REGEX = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 200}
TABLE = base64.b64encode(bytes(1024).join((b"\0\4\0\0", b"a" * 300 + b"\0"))).decode()
A, B = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")


def sequence(*parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def template(**fields: Any) -> dict[str, Any]:
    made = {"type": "TemplateProcessing", "single": [A], "pair": [A, B], "special_tokens": {}}
    return {"post_processor": {**made, **fields}}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"normalizer": {**REGEX, "content": "a" * 1000}},
            "tokenize.tokenizer: a part of it writes 1000 bytes for a match; 256 is the most",
        ),
        (
            {"normalizer": {"pattern": {"Regex": "$"}, "content": "a" * 1000}},
            "tokenize.tokenizer: a part of it puts 1000 bytes between characters; 16 is the most",
        ),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": TABLE}},
            "tokenize.tokenizer: a part of it writes 300 bytes for a character; 256 is the most",
        ),
        (
            {"normalizer": sequence(*[REGEX] * 4)},
            "the tokenizer's normalizers may make 8,000,000 bytes of a text of 1: give a shorter text, or another "
            "tokenizer",
        ),
        (
            {"normalizer": sequence(*[{"type": "NFKC"}] * 1000)},
            "tokenize.tokenizer has a sequence of more than 100 parts: tokenize in your own code, and give arrays",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False,
            "trim_offsets": False, "use_regex": False}] * 40}},
            f"tokenize.tokenizer: its pre-tokenizers may make a text {2**40} times as long; 16 is the most",
        ),
        (
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            "tokenize.tokenizer splits texts into parts of length 0",
        ),
        (
            template(
                single=[{"SpecialToken": {"id": "X", "type_id": 0}}] * 200 + [A],
                special_tokens={"X": {"id": "X", "ids": [1] * 500, "tokens": ["a"] * 500}},
            ),
            "tokenize.tokenizer adds 100,000 special tokens to a text; 4,096 is the most",
        ),
        (
            template(single=[A] * 3000),
            "tokenize.tokenizer: its template repeats a text 3000 times; 4 is the most",
        ),
        (
            {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**9, "vocab": {"[UNK]": 0}}},
            "tokenize.tokenizer looks up words of 1000000000 characters; 1000 is the most",
        ),
    ],
)  # fmt: skip
def test_a_tokenizer_that_makes_much_of_a_letter_is_refused(
    options: dict[str, Any], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(lambda: Tokenize(small_tokenizer(**options))("a")) == why
    assert capfd.readouterr().err == ""


def test_decoders_that_multiply_are_refused() -> None:
    parts = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 4
    step = Tokenize(small_tokenizer(decoder={"type": "Sequence", "decoders": parts}))
    assert refused(lambda: step.read_back(np.array([4]))) == (
        "tokenize.tokenizer: its decoders may make tokens 100000000 times as long; 256 is the most"
    )


def test_an_added_token_that_normalizers_multiply_is_refused_before_it_is_read() -> None:
    token = {"id": 9, "content": "aa", "special": False, "normalized": True, "single_word": False}
    added = [{**token, "lstrip": False, "rstrip": False}]
    content = small_tokenizer(normalizer=sequence(*[REGEX] * 4), added_tokens=added)
    assert refused(lambda: Tokenize(content)("b")).startswith("the tokenizer's normalizers may ")


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "NFKC"}, {"type": "StripAccents"}, {"type": "Lowercase"}],
        [
            {"type": "Prepend", "prepend": "_"},
            {**REGEX, "pattern": {"String": " "}, "content": "_"},
        ],
        [{"type": "NFD"}, *[{**REGEX, "pattern": {"Regex": r"\s+"}, "content": " "}] * 20],
    ],
)
def test_normalizers_in_use_change_long_texts_as_the_library_does(parts: list[Any]) -> None:
    content = small_tokenizer(normalizer=sequence(*parts))
    for text in ("the cat sat", "the cat sat on mats " * 5_000):
        ids = Tokenize(content)(text)["input_ids"]
        assert ids.tolist() == tokenizers.Tokenizer.from_str(content).encode(text).ids


def test_room_is_made_for_what_a_text_is_normalized_to() -> None:
    sizes: list[int] = []
    token = making_room.set(sizes.append)
    try:
        Tokenize(small_tokenizer(normalizer=sequence({"type": "NFKC"}, {"type": "NFKC"})))(
            "\ufdfa" * 4000
        )
    finally:
        making_room.reset(token)
    assert sizes == [512 * 33 * 4000]


X, B1 = {"SpecialToken": {"id": "X", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
TWICE = template(
    single=[A, X, A],
    pair=[B1, X, A, B1],
    special_tokens={"X": {"id": "X", "ids": [1], "tokens": ["a"]}},
)


def other_tokenizers() -> dict[str, str]:
    """Return tokenizers of each kind, by name."""
    letters = {letter: i for i, letter in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    numbers = {**letters, "at": 256, "th": 257, "the": 258, "\u0120c": 259}
    merges = [("a", "t"), ("t", "h"), ("th", "e"), ("\u0120", "c")]
    built = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, merges))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    built.add_special_tokens(["<pad>", "<s>", "</s>"])
    texts = {"bytes": built.to_str()}
    built.post_processor = tokenizers.processors.ByteLevel()
    texts["bytes, trimmed"] = built.to_str()
    ends = ("</s>", built.token_to_id("</s>")), ("<s>", built.token_to_id("<s>"))
    built.post_processor = tokenizers.processors.RobertaProcessing(*ends)
    texts["bytes, as RoBERTa"] = built.to_str()
    scored = [("<pad>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581the", -1.0), ("at", -1.5)]
    scored += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    built = tokenizers.Tokenizer(tokenizers.models.Unigram(scored, 1))
    built.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Replace(tokenizers.Regex("^"), "a")]
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    return {
        **texts,
        "Unigram": built.to_str(),
        "WordPiece": CONTENT,
        "WordPiece, repeated": small_tokenizer(**TWICE),
    }


CONTENTS = other_tokenizers()
some_words = st.lists(
    st.sampled_from(("the", "cat", "sats", "mat", "!", "\u00e9\ufb03 ", "<s>", "q"))
)
long_texts = st.builds(lambda some, times: " ".join(some * times), some_words, st.integers(0, 12))


@given(
    content=st.sampled_from(sorted(CONTENTS)),
    texts=st.lists(long_texts, min_size=1, max_size=2),
    length=st.one_of(st.integers(6, 12), st.integers(6, 200)),
    direction=st.sampled_from(("Left", "Right")),
    filled=st.sampled_from(("Left", "Right")),
    piece=st.sampled_from((1, 20, 4096)),
)
def test_texts_are_cut_as_the_library_cuts_them(
    content: str, texts: list[str], length: int, direction: str, filled: str, piece: int
) -> None:
    truncation = {
        "max_length": length,
        "stride": 0,
        "strategy": "LongestFirst",
        "direction": direction,
    }
    padding: dict[str, Any] = {
        "strategy": {"Fixed": length},
        "direction": filled,
        "pad_to_multiple_of": None,
    }
    padding |= {"pad_id": 0, "pad_type_id": 1, "pad_token": "<pad>"}
    whole = {**json.loads(CONTENTS[content]), "truncation": truncation, "padding": padding}
    if "WordPiece" in content:
        whole["padding"]["pad_token"] = "[PAD]"
    else:
        whole["padding"]["pad_id"] = tokenizers.Tokenizer.from_str(CONTENTS[content]).token_to_id(
            "<pad>"
        )
    library = tokenizers.Tokenizer.from_str(json.dumps(whole))
    step = Tokenize(json.dumps(whole), length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_limit, "_PIECE", piece)
        found = step._encoded(texts)
    wanted = library.encode(*texts)
    assert (found.ids, found.type_ids) == (wanted.ids, wanted.type_ids)
    assert found.attention_mask == wanted.attention_mask
    if len(texts) == 1:
        assert (found.offsets, found.word_ids) == (wanted.offsets, wanted.word_ids)


def test_nothing_is_made_of_what_is_cut_off_two_long_texts_or_a_repeated_one() -> None:
    text = "the cat sat " * 250
    assert Tokenize(CONTENT, 8)._encoded([text, text]).overflowing == []
    assert Tokenize(small_tokenizer(**TWICE), 8)._encoded([text]).overflowing == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((9000, 9001), [2, 4, 4, 3, 5, 5, 5, 3]),
        ((9001, 9000), [2, 4, 4, 4, 3, 5, 5, 3]),
        ((9000, 9000), [2, 4, 4, 3, 5, 5, 5, 3]),
        ((1, 9000), [2, 4, 3, 5, 5, 5, 5, 3]),
    ],
)
def test_the_longer_of_two_very_long_texts_keeps_more(
    words: tuple[int, int], wanted: list[int]
) -> None:
    sample = Tokenize(CONTENT, 8)(["the " * words[0], "cat " * words[1]])
    assert sample["input_ids"].tolist() == wanted
