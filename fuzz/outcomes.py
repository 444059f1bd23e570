"""What is said of an input that is refused, and files that one is written to."""

from __future__ import annotations

from hasten.errors import HastenError


def refused(error: HastenError) -> str:
    """Say that an input was refused, after a look at what was said: one line that a terminal can show.

    Raises:
        AssertionError: it isn't one.
    """
    said = str(error)
    assert said.strip(), "the message is empty"
    assert "\n" not in said, f"the message has several lines: {said[:200]!r}"
    assert said.isprintable(), f"the message has characters that control a terminal: {said[:200]!r}"
    return "refused"
