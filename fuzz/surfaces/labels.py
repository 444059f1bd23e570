"""Labels of audited answers over HTTP: a model is asked under ids, then its labels are sent, in any form."""

from __future__ import annotations

import gzip
import json
import random
from itertools import count
from pathlib import Path
from typing import Any

from fuzz.mutation import any_value, changed_record
from fuzz.served import WATCHED
from fuzz.surface import MOST_BYTES
from fuzz.surfaces.http import Headers, Http, asking, request, tensor

_ID = b"id-00000000"
"""Begin of the ids in an input. Each check puts a number in its place, since an id can be labelled once."""
_ROWS = (1, 3)
_UNITS = (b"[],", b"[[0]],", b"0,", b"1e9,", b'"",', b'"\\u0001",', b"true,", b"9", b"[", b"{},")
"""Parts of which long labels consist."""
_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20)
_LABELS = (3, 0.5, True, "a text", [0, 0, 1], [[0, 0, 1, 1, 3]], [[[0, 1], [2, 255]]], [0.1, 0.9])


class Labels(Http):
    """Requests one after another: inferences under ids, their labels, and what the monitor says of them."""

    name = "labels"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._checks = count()

    def seeds(self) -> list[bytes]:
        made = []
        for model in WATCHED:
            for rows in _ROWS:
                asked = b"".join(_asked(model, number, rows) for number in range(2))
                for label in _LABELS:
                    known = [{"id": _name(number), "label": label} for number in range(2)]
                    others = [{"id": _name(9), "label": label}] * 3
                    body = json.dumps({"labels": known + others}).encode()
                    made.append(
                        asked + _labels(model, body) + request(f"v2/models/{model}/monitor")
                    )
        return made

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        kind = rng.random()
        model, rows = rng.choice(WATCHED), rng.choice(_ROWS)
        asked = b"".join(_asked(model, number, rows) for number in range(2))
        if kind < 0.25:
            return super().mutate(rng, seed)
        if kind < 0.65:
            label = rng.choice((rng.choice(_LABELS), [rng.choice(_LABELS)] * rows))
            record = {"labels": [{"id": _name(number), "label": label} for number in range(3)]}
            body = json.dumps(changed_record(record, rng, (_name(0), _name(1)))).encode()
            if rng.random() < 0.2:
                body = json.dumps({"labels": [{"id": _name(0), "label": any_value(rng)}]}).encode()
        elif kind < 0.75:
            one = json.dumps(
                {"id": _name(rng.choice((0, 9))), "label": rng.choice(_LABELS)}
            ).encode()
            body = b'{"labels":[%s]}' % b",".join([one] * rng.choice((2, 600, 9_000, 20_000)))
        else:
            body = _long(rng)
        made = asked + (_packed if rng.random() < 0.7 else _labels)(model, body)
        return made[:MOST_BYTES]

    def check(self, data: bytes) -> str:
        own = b"id-%08d" % (next(self._checks) % 10**8)
        word = super().check(data.replace(_ID, own))
        # An answer without a label would keep those behind it from being scored.
        fitting: list[Any] = [1, [1] * max(_ROWS)]
        sound = [{"id": _name(n), "label": label} for n in range(2) for label in fitting]
        last = json.dumps({"labels": sound}).encode().replace(_ID, own)
        for model in WATCHED:
            super().check(_labels(model, last))
        return word


def _name(number: int) -> str:
    return f"{_ID.decode()}-{number}"


def _asked(model: str, number: int, rows: int) -> bytes:
    data: list[Any] = [[0.25, 0, 0, 0.75]] * rows
    body = json.dumps(asking(tensor("x", "FP32", [rows, 4], data), id=_name(number))).encode()
    return request(f"v2/models/{model}/infer", body)


def _labels(model: str, body: bytes, headers: Headers = ()) -> bytes:
    return request(f"v2/models/{model}/labels", body, headers)


def _packed(model: str, body: bytes) -> bytes:
    return _labels(model, gzip.compress(body, mtime=0), [("Content-Encoding", "gzip")])


def harmful() -> list[bytes]:
    """Return labels that took much memory or time once: texts of two lengths, many lists, and deep ones."""
    texts = b'["%b"%b]' % (b"a" * 32_000, b',""' * 10_600)
    lists, deep = b"[%b0]" % (b"[]," * 340_000), b"[" * 500_000
    bodies = [b'{"labels":[{"id":"%b-0","label":%b}]}' % (_ID, one) for one in (texts, lists, deep)]
    return [_asked(model, 0, 1) + _packed(model, body) for model in WATCHED for body in bodies]


def _long(rng: random.Random) -> bytes:
    """Return a label of which compressing leaves little: a list, a text, or digits that repeat."""
    unit, size = rng.choice(_UNITS), rng.choice(_SIZES)
    begin, end = rng.choice(((b"[", b"]"), (b"[", b"]"), (b'"', b'"'), (b"", b"")))
    if begin == b'"':
        unit = rng.choice((b"a", b"\\u0301", b"\\n", "\u4e2d".encode()))
    label = begin + (unit * (size // len(unit))).rstrip(b",") + end
    return b'{"labels":[{"id":"%b","label":%b}]}' % (_name(rng.choice((0, 1, 9))).encode(), label)
