"""People's words for what records name, and short forms of long labels."""

from __future__ import annotations

import re
import textwrap

from hasten.bundle.manifest import one_line
from hasten.core.words import points as in_points

ROLES = {
    "default engine": "today's model",
    "fastest exact": "fastest exact form",
    "winner": "what ships",
    "fastest uncertified": "fastest, not certified",
}
"""Role of a row -> words for it in charts, tables and the summary."""
KINDS = {
    "arithmetic": "arithmetic",
    "elementwise": "element by element",
    "conversion": "changing the format",
    "movement": "copying",
    "other": "other",
}
"""Kind of a step -> words for it."""
GUARDS = {
    "net": "how far the score falls on balance: what is lost minus what is gained",
    "lost": "the share of inputs that go from right to wrong",
    "changed": "the share of answers that change",
}
"""Guarded quantity -> words for it."""
HEADS = {
    "": "role",
    "faster": "times as fast",
    "p50": "median (p50)",
    "p99": "99th percentile (p99)",
}
"""Head of a column on a narrow screen -> head on the page; others stay."""
FACTS = {"cpus": "CPUs", "isa": "instruction sets", "python": "Python"}
"""Key of a fact about the host -> words for it; others stay."""
PRECISIONS = {"i8": "int8", "u8": "uint8", "f16": "float16", "f32": "float32"}
"""Precision as engines spell it -> as the page does; others stay."""

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):[0-9.]+\+00:00")
_INSIDE = re.compile(r" ?\([^()]*\)")
_WIDE = "16-bit activations"
"""Part of a form's label that says its precision in brackets, and stays."""
_ENGINE = re.compile(r"[A-Z]|compiled ")
_LATIN = 0x250
"""First code point after the letters that the plots' font surely has."""


def role(name: str) -> str:
    """Return people's words for a row's role, which may come from a bundle that a stranger wrote."""
    return ROLES.get(name) or cut(name, 60)


def plain(label: str, most: int = 60) -> str:
    """Write a candidate's label in few words: "int8 on OpenVINO" for "int8 (NNCF), OpenVINO".

    Of what is said in brackets, 16-bit activations alone stay: "int8 with 16-bit activations on compiled C".

    Args:
        label: Label of a candidate. It may come from a bundle that a stranger wrote.
        most: Largest number of letters to return; a longer text ends in an ellipsis.
    """
    bare = _INSIDE.sub(lambda found: f" with {_WIDE}" * (_WIDE in found[0]), one_line(label))
    parts = bare.split(", ")
    engine = next((at for at, part in enumerate(parts) if at and _ENGINE.match(part)), None)
    if engine is not None:
        parts = [f"{', '.join(parts[:engine])} on {parts[engine]}", *parts[engine + 1 :]]
    return cut(", ".join(parts), most)


def cut(words: str, most: int) -> str:
    """Shorten a text to so many letters, all of which the plots' font has."""
    kept = "".join(one if ord(one) < _LATIN else "?" for one in one_line(words))
    return kept if len(kept) <= most else f"{kept[: most - 1].rstrip(' ,_-')}…"


def sentence(words: str) -> str:
    """Make a sentence of a phrase: a capital letter first, a full stop at its end."""
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def folded(label: str, letters: int) -> str:
    """Write a candidate's label in few words, on at most two lines of so many letters."""
    return "\n".join(
        textwrap.wrap(plain(label), letters, max_lines=2, placeholder="…", break_on_hyphens=False)
    )


def times(speed: float) -> str:
    """Write a speed-up in three significant digits, such as "4.28" or "2.30"."""
    if speed < 0.1:
        return f"{speed:.3g}"
    return f"{speed:.{2 if speed < 9.995 else 1 if speed < 99.95 else 0}f}"


def points(share: float) -> str:
    """Write a share as points: "1 point", "0.45 points"."""
    written = f"{float(f'{100 * share:.2g}'):g}"
    return in_points(written)


def span(seconds: float) -> str:
    """Write a span of time for people: "8 min 4 s", "1 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(created: str) -> str:
    """Write a time in ISO 8601 for people: "2026-11-24 21:27 UTC"; any other text stays."""
    found = _MOMENT.fullmatch(created)
    return f"{found[1]} {found[2]} UTC" if found else created
