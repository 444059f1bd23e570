"""The messages of hasten's errors, whatever a stranger's file has in its names."""

import gc
import itertools
import pickle
from pathlib import Path

import pytest

from hasten.core.raised import raised
from hasten.engines.failures import failed
from hasten.errors import (
    CandidateError,
    HastenError,
    InputError,
    UnknownMember,
    call,
    first_words,
    named,
    told,
)

NAME = "\x1b]0;owned\x07\nError: all is well\u202e\udcff"
SHOWN = r"\x1b]0;owned\x07\nError: all is well\u202e\udcff"


@pytest.mark.parametrize(
    "error",
    [
        InputError(f"there is no {NAME}"),
        CandidateError(f"there is no {NAME}"),
        UnknownMember("there is no module", "hasten.steps:a", NAME),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_errors_message_controls_no_terminal(error: HastenError) -> None:
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert type(one) is type(error)
        assert str(one) == f"{one}"
        assert SHOWN in str(one)
        assert str(one).isprintable()
        str(one).encode()


def test_an_error_of_an_error_is_written_out_once() -> None:
    assert str(InputError(InputError("a\tb"))) == r"a\tb"
    assert str(InputError(str(InputError(r"a\tb")))) == r"a\tb"
    assert str(InputError("größer als µs, 東京")) == "größer als µs, 東京"
    assert str(InputError()) == ""


def test_the_middle_of_a_long_message_is_left_out() -> None:
    assert str(InputError("a" * 2000)) == "a" * 2000
    long = InputError("there is no " + "\n" * 1_000_000 + ": give another")
    assert long.whole == "there is no " + r"\n" * 1_000_000 + ": give another"
    assert str(long).startswith(r"there is no \n\n\n")
    assert str(long).endswith(r"\n\n: give another")
    assert "... (2,000,026 characters) ..." in str(long)
    assert len(str(long)) < 2100
    nested = str(InputError(f"file: {long}; try again"))
    assert len(nested) < 2100
    assert nested.endswith(": give another; try again")


def test_a_raised_errors_message_is_matched_as_it_is_shown() -> None:
    with pytest.raises(InputError, match=r"^a\\nb$"):
        raise InputError("a\nb")


def test_messages_know_the_folders_that_were_made_last_by_what_they_were_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hasten.errors._GIVEN", {})
    folders = [Path(f"/cache/{number}") for number in range(300)]
    for folder in folders:
        call(folder, f"{folder.name}.hastenz")
    call(folders[250], "again.hastenz")
    assert str(InputError("/cache/299/x.onnx is damaged")) == "299.hastenz/x.onnx is damaged"
    assert str(InputError("/cache/250 is damaged")) == "again.hastenz is damaged"
    assert str(InputError("/cache/1 is damaged")) == "/cache/1 is damaged"


def test_a_message_is_read_while_another_bundle_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hasten.errors._GIVEN", {})
    for number in range(20):
        call(Path(f"/cache/before/{number}"), f"{number}.hastenz")
    later = itertools.count()
    kept = [(number, later) for number in range(10_000)]  # so that new pairs are new objects
    threshold = gc.get_threshold()

    def unpacked(phase: str, _: object) -> None:
        call(Path(f"/cache/later/{next(later) % 50}"), "later.hastenz")

    # The collector may begin with each new object, and other threads go on then.
    gc.callbacks.append(unpacked)
    gc.set_threshold(1)
    try:
        said = [str(InputError("/cache/before/7 is damaged")) for _ in range(50)]
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(unpacked)
    assert len(kept) == 10_000
    assert {*said} == {"7.hastenz is damaged"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", ""),
        ("  \n ", ""),
        ("it broke\nbecause", "it broke"),
        ("\n  it broke\n", "it broke"),
        ("it broke:\n\n  the axis is 7\nmore", "it broke: the axis is 7"),
        ("a:\nb:\nc\nd", "a: b: c"),
        ("it broke:", "it broke"),
        ("it broke: \n ", "it broke"),
    ],
)
def test_first_words_go_on_behind_a_colon(said: str, words: str) -> None:
    assert first_words(said) == words
    told_of = named(ValueError(said))
    assert told_of == (f"ValueError: {words}" if words else "ValueError")


@pytest.mark.parametrize("said", ["", " \n", "it broke:\nthe axis is 7", "it broke:"])
def test_no_reason_of_a_library_ends_at_a_colon(said: str) -> None:
    for words in (
        str(failed("the runtime failed", RuntimeError(said))),
        raised(RuntimeError(said)),
        told(RuntimeError(said)),
    ):
        assert not words.endswith(":")
        assert "axis" not in said or words.endswith("it broke: the axis is 7")
