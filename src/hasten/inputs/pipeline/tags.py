"""Entities in a row of tags, such as B-PER, I-PER, O, as networks that tag words are trained to give them."""

from __future__ import annotations

from collections.abc import Sequence

OUTSIDE = "O"
"""Tag of what belongs to no entity."""
_SCHEME = frozenset("BIESLU")
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities in a row of tags: kind, first place, and the place after the last.

    B-X begins an entity of kind X, I-X continues it, and begins one where none of its kind is before it.
    E-X or L-X ends one, and S-X or U-X is one by itself. A tag without such a prefix is a kind, whose
    neighboring places are one entity. O is no entity.

    Source: conlleval of the shared task CoNLL-2000, whose rules seqeval follows, too.

    Args:
        tags: Tag of each place, in order.
    """
    found: list[tuple[str, int, int]] = []
    open_kind, ended, start = "", True, 0
    for place, tag in enumerate((*tags, OUTSIDE)):
        prefix, kind = _split(tag)
        begins = bool(kind) and (prefix in _BEGINS or ended or kind != open_kind)
        if open_kind and (begins or not kind):
            found.append((open_kind, start, place))
        if begins:
            start = place
        open_kind, ended = kind, not kind or prefix in _ENDS
    return found


def _split(tag: str) -> tuple[str, str]:
    """Return a tag's prefix and its kind; the kind is empty outside of entities."""
    if tag == OUTSIDE:
        return "", ""
    if len(tag) > 2 and tag[0] in _SCHEME and tag[1] in "-_":
        return tag[0], tag[2:]
    return "I", tag
