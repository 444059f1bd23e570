"""Texts that a served model's tokenizer takes apart, and rows of a table as JSON, in each way of `Media`."""

from __future__ import annotations

import json
import random
from typing import Any

from fuzz.mutation import any_value, changed_bytes, changed_record, grown
from fuzz.served import COLUMNS, WORDS
from fuzz.surfaces.media import Media

_LETTERS = (
    *(
        "a",
        " ",
        "\n",
        "\0",
        "\x1b[2J",
        "\u00e9",
        "e\u0301",
        "\u0301",
        "\u4e2d",
        "\U0001f600",
        "\ufeff",
    ),
    *("\u202e", "\u200d", "\ufdfa", "\u1e9b\u0323", "\ufffd", "[CLS]", "[PAD]", "##s", "'", "."),
)
"""Letters and words that normalizers change, join, take apart or leave out."""
_TIMES = (1, 2, 8, 100, 1000, 20_000, 200_000)
_LONGEST = 4 << 20
"""Characters of a text, of which compressing leaves a few kilobytes."""


class Texts(Media):
    """Texts for a model whose pipeline tokenizes; some are pairs, as JSON."""

    name = "texts"
    models = ("text",)
    kind = "text/plain"
    times: tuple[int, ...] = _TIMES
    """How often the letters of a text may be repeated."""

    def files(self) -> list[bytes]:
        texts = [
            "the cat sat",
            "The cats sat on the mat.",
            "",
            "caf\u00e9 \u4e2d\u6587",
            "the " * 200,
        ]
        return [*(text.encode() for text in texts), json.dumps(["the cat", "sat"]).encode()]

    def changed(self, rng: random.Random, file: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return changed_bytes(file, rng)
        if kind < 0.55:
            return grown(file, rng)
        parts = [rng.choice((*WORDS, *_LETTERS)) for _ in range(rng.choice((1, 3, 20)))]
        text = rng.choice(("", " ")).join(parts) * rng.choice(self.times)
        form = rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1"))
        return text[:_LONGEST].encode(form, "replace")


class Rows(Media):
    """Rows for a model of table rows: objects, lists, and lists of both."""

    name = "rows"
    models = ("row",)
    kind = "application/json"

    def files(self) -> list[bytes]:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5) | {COLUMNS[-1]: "red"}
        values = list(row.values())
        every: list[Any] = [row, values, [row, values], [row] * 5]
        return [*(json.dumps(one).encode() for one in every), json.dumps(row, indent=2).encode()]

    def changed(self, rng: random.Random, file: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.25:
            return changed_bytes(file, rng)
        if kind < 0.35:
            return grown(file, rng)
        made = changed_record(json.loads(file), rng, (*COLUMNS, "red", "violet"))
        if rng.random() < 0.1:
            made = [made] * rng.choice((2, 64, 1000))
        if rng.random() < 0.1:
            made = any_value(rng, COLUMNS)
        form = rng.choice(("utf-8", "utf-8", "utf-8", "utf-16"))
        return json.dumps(made, ensure_ascii=rng.random() < 0.5).encode(form, "surrogatepass")
