"""Bounds on what a tokenizer makes of a text, which is read from its JSON before the library reads it.

The library ends the process where it gets no memory, and a bundle's author may write any tokenizer.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.errors import InputError

_MOST_TIMES, _FREE_BYTES = 16, 64 << 10
"""A text may become so many times as long, and so many bytes more."""
_STEP_BYTES = 64 << 20
"""Bytes that one normalizer may make of a text at most; the library takes 17 times as many."""
_MOST_PARTS = 100
_MOST_WRITTEN, _MOST_PREPENDED = 256, 16
"""Bytes that a normalizer writes for a match, and that it puts where nothing was matched."""
_MOST_PIECES = 4
"""Times that a template may repeat a text."""
_MOST_DECODED = 256
"""Most times that the decoders may make tokens longer."""
_MOST_WORD = 1000
"""Characters of the longest word that is looked up, for which time grows with their square."""
_UNKNOWN = 16
_ODD_BYTES = 3
"""Bytes of a character for which a table has a long text: in the usual tables, the longest is for U+FDFA."""
_INNER = ("normalizers", "pretokenizers", "processors", "decoders")
_FACTORS = {
    **{"BertNormalizer": 9, "ByteLevel": 2, "Lowercase": 2, "NFC": 3, "NFD": 3, "NFKC": 11},
    **{"NFKD": 11, "Nmt": 1, "Strip": 1, "StripAccents": 1},
}
"""Bytes that a normalizer makes of one at most; tried on each character of Unicode."""
_SPLITTING = {"ByteLevel": 2, "Metaspace": 4}
"""The same of pre-tokenizers; others only split."""
_BESIDE = re.compile(r"\(\?(?!:)|[\^$]|\\[bBAzZGKyY]")
"""Part of a regular expression that may match between characters only."""


def shielded(what: str, function: Any, *arguments: Any) -> Any:
    """Call the tokenizer library, whose errors, panics too, become one line."""
    try:
        return function(*arguments)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{what} can't be read by the tokenizer: {reason:.200}") from error


@dataclass(frozen=True)
class Growth:
    """The most that a tokenizer's normalizers make of a text.

    Attributes:
        steps: For each normalizer in order, the library's object and the bytes that it makes of one at most.
        tokens: Texts at which the tokenizer splits a text before it is normalized.
    """

    steps: tuple[tuple[Any, int], ...]
    tokens: re.Pattern[str] | None

    def size_of(self, text: str) -> int:
        """Return the bytes that a text is normalized to where they may be many; 0 where they can't be.

        Raises:
            InputError: it would become much longer.
        """
        most = 1
        for _, times in self.steps:
            most *= times
        if most <= _MOST_TIMES or 4 * most * len(text) <= _FREE_BYTES:
            return 0
        size = _bytes_in([text])
        pieces = [text]
        if self.tokens is not None:
            apart = [piece for piece in self.tokens.split(text) if piece]
            pieces += apart if len(apart) > 1 else []
        for step, times in self.steps:
            if times * _bytes_in(pieces) > _STEP_BYTES:
                raise _too_long(size, times * _bytes_in(pieces))
            pieces = [shielded("the text", step.normalize_str, piece) for piece in pieces]
            if (made := _bytes_in(pieces)) > 2 * _MOST_TIMES * size + _FREE_BYTES:
                raise _too_long(size, made)
        return max(_bytes_in(pieces[:1]), _bytes_in(pieces[1:]))


def checked(content: str) -> tuple[str, Growth]:
    """Return a tokenizer's JSON as the library is to read it, and the bounds on what its normalizers make.

    Args:
        content: JSON of a tokenizer, from anybody.

    Raises:
        InputError: the library can't read its parts, or they may make much of a short text.
    """
    from tokenizers import Tokenizer

    try:
        record = json.loads(content)
        content = json.dumps(record)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict):
        shielded("tokenize.tokenizer", Tokenizer.from_str, content)  # says what is wrong
        raise InputError("tokenize.tokenizer can't be read by the tokenizer: it has no model")
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    bare: dict[str, Any] = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": []},
        "model": {"type": "WordLevel", "unk_token": "", "vocab": {}},
    }
    # The library also reads parts without a type, and writes them with it.
    whole = {name: record.get(name) for name in names}
    _check_lengths(whole)
    known = json.loads(
        shielded("tokenize.tokenizer", Tokenizer.from_str, json.dumps(bare | whole)).to_str()
    )
    steps = []
    for part in _parts(known["normalizer"]):
        own = shielded(
            "tokenize.tokenizer", Tokenizer.from_str, json.dumps(bare | {"normalizer": part})
        )
        steps.append((own.normalizer, _times(part, own.normalizer)))
    _check_rest(known, record["model"])
    added = [one for one in record.get("added_tokens") or () if isinstance(one, dict)]
    texts = [str(one["content"]) for one in added if one.get("content")]
    at = re.compile("|".join(map(re.escape, texts))) if texts else None
    growth = Growth(tuple(steps), at)
    alone = Growth(growth.steps, None)
    for text in texts:  # which are normalized, too, as they are read
        alone.size_of(text)
    return content, growth


def _check_lengths(parts: Mapping[str, Any]) -> None:
    """Check what panics as the library reads or uses it."""
    for part in _parts(parts["pre_tokenizer"]):
        if part.get("type") == "FixedLength" and part.get("length") == 0:
            raise InputError("tokenize.tokenizer splits texts into parts of length 0")


def _check_rest(known: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Check what comes after the normalizers."""
    most = 1
    for part in _parts(known["pre_tokenizer"]):
        most *= _SPLITTING.get(part["type"], 1)
    if most > _MOST_TIMES:
        raise InputError(
            f"tokenize.tokenizer: its pre-tokenizers may make a text {most} times as long; {_MOST_TIMES} is the most"
        )
    most = 1
    for part in _parts(known["post_processor"]):
        if part["type"] == "TemplateProcessing":
            pieces = [
                one["Sequence"]["id"]
                for one in (*part["single"], *part["pair"])
                if "Sequence" in one
            ]
            most *= max(1, *(pieces.count(one) - 1 for one in ("A", "B")))
    if most > _MOST_PIECES:
        raise InputError(
            f"tokenize.tokenizer: its template repeats a text {most} times; {_MOST_PIECES} is the most"
        )
    most = 1
    for part in _parts(known["decoder"]):
        if part["type"] == "Replace":
            most *= _replaced(part, may_insert=True)
    if most > _MOST_DECODED:
        raise InputError(
            f"tokenize.tokenizer: its decoders may make tokens {most} times as long; {_MOST_DECODED} is the most"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.get(name)
        if isinstance(affix, str) and len(affix) > _MOST_WRITTEN:
            raise InputError(
                f"tokenize.tokenizer: {name} has {len(affix)} characters; {_MOST_WRITTEN} is the most"
            )
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > _MOST_WORD:
        raise InputError(
            f"tokenize.tokenizer looks up words of {longest} characters; {_MOST_WORD} is the most"
        )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a sequence, and of those in it, in order.

    Raises:
        InputError: there are too many.
    """
    left, count = [value], 0
    while left:
        part = left.pop()
        if not isinstance(part, dict):
            continue
        inner = next((part[name] for name in _INNER if isinstance(part.get(name), list)), None)
        if inner is not None:
            left += reversed(inner)
            continue
        count += 1
        if count > _MOST_PARTS:
            raise InputError(
                f"tokenize.tokenizer has a sequence of more than {_MOST_PARTS} parts: tokenize in your own code, "
                "and give arrays"
            )
        yield part


def _times(part: Mapping[str, Any], normalizer: Any) -> int:
    """Return the bytes that a normalizer makes of one at most."""
    kind = part["type"]
    if kind == "Prepend":
        return 1 + _within(_size(part["prepend"]), _MOST_PREPENDED, "puts", "before a text")
    if kind == "Precompiled":
        blob = base64.b64decode(part["precompiled_charsmap"])
        texts = blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")
        longest = _within(max(map(len, texts)), _MOST_WRITTEN, "writes", "for a character")
        return max(1, -(-longest // _ODD_BYTES))
    if kind == "Replace":
        pattern = part["pattern"].get("Regex")
        between = pattern is not None and (
            bool(_BESIDE.search(pattern))
            or shielded("tokenize.tokenizer", normalizer.normalize_str, "") != ""
        )
        return _replaced(part, may_insert=between)
    return _FACTORS.get(kind, _UNKNOWN)


def _replaced(part: Mapping[str, Any], *, may_insert: bool) -> int:
    """Return the bytes that replacing makes of one at most."""
    size, pattern = _size(part["content"]), part["pattern"]
    plain = pattern.get("String")
    if plain == "" or (plain is None and may_insert):
        most = _within(size, _MOST_PREPENDED, "puts", "between characters")
        return 1 + 2 * most
    _within(size, _MOST_WRITTEN, "writes", "for a match")
    return max(1, -(-size // (1 if plain is None else _size(plain))))


def _within(size: int, most: int, does: str, where: str) -> int:
    if size > most:
        raise InputError(
            f"tokenize.tokenizer: a part of it {does} {size} bytes {where}; {most} is the most"
        )
    return size


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _bytes_in(texts: list[str]) -> int:
    return sum(map(_size, texts))


def _too_long(size: int, made: int) -> InputError:
    return InputError(
        f"the tokenizer's normalizers may make {made:,} bytes of a text of {size:,}: give a shorter text, or "
        "another tokenizer"
    )
