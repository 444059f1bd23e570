"""Step from a text to a language model's inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Step, Tokenized
from hasten.inputs.pipeline.memory import make_room
from hasten.inputs.pipeline.token_limit import TokenLimit
from hasten.inputs.pipeline.tokenizer_growth import Growth, checked, shielded
from hasten.inputs.pipeline.written import FILE, read_text

MAX_TOKENIZER_BYTES = 3 << 20
"""Size in bytes, written as JSON, of the largest tokenizer: a bundle's manifest has 4 MiB in all."""
MAX_LENGTH = 2**20
"""Largest number of tokens in a sample."""
_MOST_SPECIAL = 4096
"""Largest number of special tokens that a tokenizer adds to a text or to two."""
_PADDING = ("[PAD]", "<pad>")
_LONG = 4096
"""Characters above which a text is tokenized as a batch of one: only so does the library let Python's other
threads run meanwhile. A text of 64 kB stopped them for 50 ms."""
_MEMORY_PER_BYTE = 512
"""Bytes of memory that a text's encoding takes at most for each byte: where each byte is a token, 390 to 480."""
_LONGEST_BYTES = 256 << 10
"""Size of a text whose encoding Python's other threads wait for by 20 to 50 ms, since they can't run while it is
freed."""


@dataclass(frozen=True)
class Tokenize(Step):
    """Turn a text, or a pair of texts, into tokens: one-dimensional arrays by input name.

    What a model has no input for is left out when it is asked.

    Attributes:
        tokenizer: Content of a `tokenizer.json` of Hugging Face; in a pipeline file its path.
        length: Number of tokens that longer texts are cut to, special tokens included; 0 for what
            the tokenizer itself states, or any length.
        pad: Whether shorter texts are filled up to `length`; otherwise a sample is as long as its
            text.
        pad_token: Token that fills up; by default the tokenizer's own.
        ids: Name of the input that takes the tokens' numbers.
        mask: Name of the input that takes 1 for each token of the text, and 0 for each that fills
            up.
        types: Name of the input that takes 0 for tokens of the first text, 1 for the second.
        dtype: Element type of all three.
    """

    tokenizer: str = field(repr=False, metadata={FILE: True})
    length: int = 0
    pad: bool = True
    pad_token: str = ""
    ids: str = "input_ids"
    mask: str = "attention_mask"
    types: str = "token_type_ids"
    dtype: Literal["int64", "int32"] = "int64"
    packages: ClassVar[tuple[str, ...]] = ("tokenizers",)
    extra: ClassVar[str] = "text"
    memory_per_byte = _MEMORY_PER_BYTE
    longest_bytes: ClassVar[int] = _LONGEST_BYTES

    def __post_init__(self) -> None:
        """Check the sizes and the names; the tokenizer itself is read with the first text.

        Its file is mostly written over many lines, which a bundle's manifest doesn't hold: it is put on one.
        """
        object.__setattr__(self, "tokenizer", _on_one_line(self.tokenizer))
        size = len(json.dumps(self.tokenizer))
        if size > MAX_TOKENIZER_BYTES:
            raise InputError(
                f"tokenize.tokenizer takes {size} bytes in a bundle's manifest, which has room for "
                f"{MAX_TOKENIZER_BYTES}: tokenize in your own code, and give arrays"
            )
        if not 0 <= self.length <= MAX_LENGTH:
            raise InputError(f"tokenize.length={self.length!r}: give 0 to {MAX_LENGTH} tokens")
        names = self.gives_inputs
        if len(set(names)) != len(names):
            raise InputError(f"tokenize gives three inputs; their names are {', '.join(names)}")

    @cached_property
    def _checked(self) -> tuple[str, Growth]:
        """The tokenizer's JSON as the library is to read it, and bounds on what it makes of a text."""
        try:
            return checked(self.tokenizer)
        except ImportError as error:
            raise missing_extra("the step tokenize", self.extra) from error

    @cached_property
    def _limited(self) -> tuple[Any, TokenLimit | None]:
        """The tokenizer, and what cuts and fills up its tokens if there is a length.

        The file's padding isn't kept, since it may ask for any amount of memory.
        """
        content, _ = self._checked
        from tokenizers import Tokenizer

        found = shielded("tokenize.tokenizer", Tokenizer.from_str, content)
        special = found.num_special_tokens_to_add(is_pair=True)
        special = max(special, found.num_special_tokens_to_add(is_pair=False))
        if special > _MOST_SPECIAL:
            raise InputError(
                f"tokenize.tokenizer adds {special:,} special tokens to a text; {_MOST_SPECIAL:,} is the most"
            )
        padding, truncation = found.padding or {}, found.truncation or {}
        found.no_padding()
        found.no_truncation()
        length = self.length or min(truncation.get("max_length", 0), MAX_LENGTH)
        if not length:
            return found, None
        if length <= special:
            raise InputError(
                f"tokenize.length={length}: the tokenizer adds up to {special} special tokens; "
                "give more"
            )
        limit = TokenLimit.of(found, length, truncation.get("direction", "right"))
        if self.length and self.pad:
            token = self.pad_token or padding.get("pad_token") or _padding_of(found)
            number = found.token_to_id(token)
            if number is None:
                raise InputError(f"tokenize.pad_token: the tokenizer has no token {token!r}")
            limit.rest.enable_padding(
                length=self.length,
                pad_token=token,
                pad_id=number,
                pad_type_id=padding.get("pad_type_id", 0),
                direction=padding.get("direction", "right"),
            )
        return found, limit

    @property
    def _opened(self) -> Any:
        """The tokenizer, which adds special tokens only if there is no length."""
        return self._limited[0]

    @property
    def gives_inputs(self) -> tuple[str, ...]:
        """Names of the three inputs that this step gives."""
        return (self.ids, self.mask, self.types)

    @property
    def vocabulary(self) -> int:
        """Number of rows that an embedding of this tokenizer's tokens needs.

        Raises:
            InputError: the tokenizer can't be read.
        """
        return 1 + max(self._opened.get_vocab(with_added_tokens=True).values(), default=-1)

    def read_back(self, ids: Array) -> str:
        """Return the text of a sample's tokens, without special ones, for people.

        Raises:
            InputError: the tokenizer can't be read or can't handle the tokens.
        """
        numbers = [int(number) for number in ids.reshape(-1)]
        return str(shielded("the tokens", self._opened.decode, numbers))

    def __call__(self, value: Any) -> dict[str, Array]:
        """Tokenize a text, a file of text, or two texts.

        Raises:
            InputError: the value is no text, or the tokenizer can't be read or can't handle it.
        """
        return self._given(self._encoded(_read(value)))

    def traced(self, value: Any, origin: Origin) -> tuple[dict[str, Array], Origin]:
        texts = _read(value)
        encoded = self._encoded(texts)
        if origin.keeps_text:
            # No encoding, which has all that was cut off too, many times as large as the text.
            text = _tokenized(texts[0], encoded) if len(texts) == 1 else None
            origin = replace(origin, text=text)
        return self._given(encoded), origin

    def _encoded(self, texts: list[str]) -> Any:
        """Return the tokenizer library's encoding of a text or of two texts."""
        (opened, limit), growth = self._limited, self._checked[1]
        normalized = sum(map(growth.size_of, texts))
        long = sum(map(len, texts)) > _LONG
        if long or normalized:
            size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            make_room(_MEMORY_PER_BYTE * max(size, normalized))
        asked: list[tuple[Any, ...]] = [tuple(texts)]
        apart = limit is not None and len(texts) == 2
        if apart:
            # Each text alone, as the first or the second of a pair, which decides on its tokens' types.
            asked = [([texts[0]], []), ([], [texts[1]])]
        if long:
            batch = [one if len(one) == 2 else one[0] for one in asked]
            found = shielded("the text", partial(opened.encode_batch, is_pretokenized=apart), batch)
        else:
            encode = partial(opened.encode, is_pretokenized=apart)
            found = [shielded("the text", encode, *one) for one in asked]
        return found[0] if limit is None else shielded("the text", limit.finished, found)

    def _given(self, encoded: Any) -> dict[str, Array]:
        """Return an encoding's numbers by input name."""
        return {
            name: np.array(numbers, self.dtype)
            for name, numbers in (
                (self.ids, encoded.ids),
                (self.mask, encoded.attention_mask),
                (self.types, encoded.type_ids),
            )
        }


def _tokenized(text: str, encoded: Any) -> Tokenized:
    """Return a text with the words and spans of the tokens in its encoding."""
    numbers = [-1 if number is None else number for number in encoded.word_ids]
    words = np.array(numbers, np.int32)
    spans = np.fromiter(chain.from_iterable(encoded.offsets), np.int32).reshape(-1, 2)
    for array in (words, spans):
        array.flags.writeable = False  # a server's requests share what its cache keeps
    return Tokenized(text, words, spans)


def _on_one_line(content: str) -> str:
    """Return JSON without line breaks and tabs; what is no JSON as it is, which the reader refuses."""
    if content.isprintable():
        return content
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return content
    short = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return short if short.isprintable() else json.dumps(whole, separators=(",", ":"))


def _padding_of(tokenizer: Any) -> str:
    for token in _PADDING:
        if tokenizer.token_to_id(token) is not None:
            return token
    raise InputError(
        "the tokenizer doesn't state which token pads shorter texts: set tokenize.pad_token, or "
        "pad=False"
    )


def _texts(value: Any) -> Sequence[Any]:
    if isinstance(value, (str, bytes, Path)):
        return [value]
    if isinstance(value, Sequence) and len(value) == 2:
        return value
    raise InputError(f"tokenize needs a text, or two texts; got {type(value).__name__}")


def _read(value: Any) -> list[str]:
    """Return the one or two texts of a sample."""
    return [_text(each) for each in _texts(value)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        return read_text(value)
    if not isinstance(value, bytes):
        raise InputError(f"tokenize needs a text, or two texts; got {type(value).__name__}")
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the text isn't UTF-8: {error}") from error
