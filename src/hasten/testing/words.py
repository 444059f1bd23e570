"""What words for people must be."""

from __future__ import annotations


def assert_for_people(words: str) -> None:
    """They say something, on one line, and no name that only code has."""
    assert words.strip() == words != ""
    assert len(words.splitlines()) == 1
    assert "_" not in words
    assert "=" not in words
