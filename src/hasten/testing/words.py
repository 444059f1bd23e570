"""Check labels for people."""

from __future__ import annotations


def assert_for_people(words: str) -> None:
    """Assert that a label isn't empty, is one line, and has none of code's names or settings."""
    assert words.strip() == words != ""
    assert len(words.splitlines()) == 1
    assert "_" not in words
    assert "=" not in words
