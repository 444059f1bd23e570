"""Cut the tokens of a text, or of two, to a length.

The tokenizer library's own truncation keeps what it cuts off in pieces, and joins each piece of one text with each of
the other, or of the same text where a template repeats it: two texts of 3,000 characters became 2 million encodings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_PIECE = 4096
"""Tokens below which the library cuts nothing off, so that it makes few pieces of a long text."""


@dataclass(frozen=True)
class TokenLimit:
    """Last step of a tokenizer whose processor was taken away: it cuts one or two texts, and adds special tokens.

    Attributes:
        rest: Tokenizer without words that adds the special tokens, and that may fill up.
        most: Largest number of tokens without special ones, of one text and of two together.
        direction: Side on which tokens are cut off.
    """

    rest: Any
    most: tuple[int, int]
    direction: Literal["left", "right"]

    @classmethod
    def of(cls, tokenizer: Any, length: int, direction: Literal["left", "right"]) -> TokenLimit:
        """Take a tokenizer's processor from it, and let it make few pieces of a long text.

        Args:
            tokenizer: the library's object, which is changed.
            length: number of tokens, more than the special ones.
            direction: side on which tokens are cut off.
        """
        from tokenizers import Tokenizer, models

        most = [
            length - tokenizer.num_special_tokens_to_add(is_pair=pair) for pair in (False, True)
        ]
        rest = Tokenizer(models.WordLevel())
        rest.post_processor = tokenizer.post_processor
        tokenizer.post_processor = None
        tokenizer.enable_truncation(max(length, _PIECE), direction=direction)
        return cls(rest, (most[0], most[1]), direction)

    def finished(self, encodings: list[Any]) -> Any:
        """Return one encoding of the texts, which has the tokens that the library's truncation leaves.

        Args:
            encodings: those of each text alone; they are changed.
        """
        kept = self.most[:1] if len(encodings) == 1 else _kept(encodings, self.most[1])
        cut = [self._cut(one, size) for one, size in zip(encodings, kept, strict=True)]
        return self.rest.post_process(*cut)

    def _cut(self, encoding: Any, kept: int) -> Any:
        """Return the first or last tokens of an encoding, without those that are cut off."""
        from tokenizers import Encoding

        size = len(encoding)
        if kept >= size:
            return encoding
        if kept == 0:
            return Encoding()
        # Of two pieces from the other side, the second is what is kept, and has no pieces itself.
        other: Literal["left", "right"] = "left" if self.direction == "right" else "right"
        encoding.truncate(max(kept, size - kept), stride=max(0, 2 * kept - size), direction=other)
        return encoding.overflowing[0]


def _kept(encodings: list[Any], most: int) -> tuple[int, int]:
    """Return the numbers of tokens that are kept of two texts, as by the library's strategy "longest_first".

    An encoding may have lost tokens to pieces, but more than `most` are left then.
    """
    first, second = encodings
    sizes = len(first), len(second)
    if sum(sizes) <= most:
        return sizes
    shorter = min(*sizes, most // 2)
    longer = most - shorter
    if shorter != longer and sizes[0] == sizes[1]:
        sizes = _all_of(first), _all_of(second)
    return (longer, shorter) if sizes[0] > sizes[1] else (shorter, longer)


def _all_of(encoding: Any) -> int:
    return len(encoding) + sum(map(len, encoding.overflowing))
