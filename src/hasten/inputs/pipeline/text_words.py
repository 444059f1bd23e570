"""Words of a text by its tokens: which token is a word's first, and where the word stands."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.inputs.pipeline.base import Tokenized


@dataclass(frozen=True)
class Word:
    """Word of a text.

    Attributes:
        token: Place of the word's first token.
        start: First character of the word.
        end: Character after its last one.
    """

    token: int
    start: int
    end: int


def words_of(text: Tokenized) -> list[Word]:
    """Return a text's words in order, as its tokenizer divides it, and divided at white space besides.

    Some tokenizers don't divide a text before they make tokens, so that all of it is one word to them. Others make a
    token of a space alone: of the word after it, if it is a part of that, and otherwise of none.

    Args:
        text: Text and its tokens.
    """
    found: list[Word] = []
    last: int | None = None  # number of the tokenizer's word that the token before belongs to
    space: int | None = None  # place of the token before, if it has no character but spaces
    for place, (word, (begin, end)) in enumerate(
        zip(text.words.tolist(), text.spans.tolist(), strict=True)
    ):
        characters = text.text[begin:end]
        start = begin + len(characters) - len(characters.lstrip())
        if word < 0:
            last = space = None
        elif not characters.strip():
            space = space if space is not None and last == word else place
            last = word
        else:
            apart = last != word or (start > 0 and text.text[start - 1].isspace())
            if apart or not found or space is not None:
                joins = space is not None and last == word and start == begin
                found.append(Word(space if joins and space is not None else place, start, end))
            else:
                found[-1] = Word(found[-1].token, found[-1].start, max(found[-1].end, end))
            last, space = word, None
    return [Word(one.token, one.start, _stripped(text.text, one)) for one in found]


def _stripped(text: str, word: Word) -> int:
    """Return the end of a word without the spaces that its last token counts as its own."""
    return word.start + len(text[word.start : word.end].rstrip())
