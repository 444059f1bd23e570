"""YAML that describes a pipeline or a chain: its text and its values are changed."""

from __future__ import annotations

import json
import random

import yaml
from fuzz.mutation import any_value, changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import Surface

from hasten.errors import HastenError
from hasten.inputs.chains.reading import chain_of
from hasten.inputs.pipeline.config import from_path
from hasten.inputs.pipeline.ultralytics import from_metadata

_PIPELINES = (
    "size: 224\nresize: 256\nmean: [0.485, 0.456, 0.406]\nstd: [0.229, 0.224, 0.225]\n"
    "after:\n  - top_k: {count: 5, labels: names.txt}\n",
    "before:\n  - decode\n  - letterbox: 640\n  - normalize: {mean: [0, 0, 0], std: [1, 1, 1]}\n"
    "  - to_layout\nafter:\n  - threshold: 0.5\n",
)
_CHAIN = (
    "cars: {model: det.hasten}\ncar: {crop: cars, labels: [car], margin: 0.1}\n"
    "kind: {model: kinds.hasten, source: car}\n"
)
_WORDS = (
    "decode",
    "resize",
    "nms",
    "tokenize",
    "model",
    "crop",
    "when",
    "names.txt",
    ".",
    "a\0b",
    "\x1b[2J",
)
_SCALARS = (
    *("!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!!binary x", "!!set {a}"),
    *(
        "2001-13-45",
        "2001-01-01",
        "1:1:1:1",
        "0x" + "f" * 5000,
        "1" * 5000,
        "1e400",
        ".nan",
        "-.inf",
    ),
    *(
        "!!int a",
        "!!bool a",
        "!!float a",
        "!!timestamp a",
        "!!omap [1]",
        "=",
        "<<",
        "*a",
        "&a",
        "~",
    ),
    *('"\\e[2J"', '"\\ud800"', "{<<: {size: 1}}", "? [1]", "|", "? ? ? a", "- - - a"),
)
"""Texts that a value may be replaced by."""


_METADATA = {"imgsz": "[64, 64]", "task": "detect", "names": "{0: 'cat', 1: 'dog'}"}
_LITERALS = ("[]", "{}", "1e999", "b'a'", "None", "...", "classify", "0x" + "f" * 5000, "9" * 400)


class Pipelines(Surface):
    """Files of pipelines and of chains, and metadata of Ultralytics: the first byte of an input says which."""

    name = "pipelines"
    most_s = 5.0

    def seeds(self) -> list[bytes]:
        (self.folder / "names.txt").write_text("cat\ndog\nfox\ncow\nowl\n")
        metadata = b"u" + json.dumps(_METADATA).encode()
        return [*(b"p" + text.encode() for text in _PIPELINES), b"c" + _CHAIN.encode(), metadata]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        kind, text = seed[:1], seed[1:]
        if kind == b"u":
            return kind + json.dumps(_changed_metadata(rng)).encode()
        match rng.randrange(6):
            case 0:
                return kind + rng.choice((changed_bytes, grown))(text, rng)
            case 1:
                return kind + _multiplied(rng) + text
            case 2 | 3:
                places = [at for at, byte in enumerate(text) if byte in b" :,[{"]
                at = rng.choice(places)
                end = next((n for n in range(at + 1, len(text)) if text[n] in b",]}\n"), len(text))
                return kind + text[: at + 1] + rng.choice(_SCALARS).encode() + text[end:]
        change = changed_leaves if rng.random() < 0.6 else changed_record
        record = change(yaml.safe_load(text), rng, _WORDS)
        return kind + json.dumps(record).encode()  # which YAML is, too

    def check(self, data: bytes) -> str:
        path = self.folder / "input.yaml"
        path.write_bytes(data[1:])
        try:
            if data[:1] == b"u":
                from_metadata(json.loads(data[1:]))
            elif data[:1] == b"c":
                chain_of(path)
            else:
                from_path(path)
        except HastenError as error:
            return refused(error)
        return "read"


def _changed_metadata(rng: random.Random) -> dict[str, str]:
    """Return metadata of Ultralytics, of which one literal is changed, or a part of it."""
    made = dict(_METADATA)
    key = rng.choice([*made])
    literals = (*_LITERALS, str(any_value(rng)), made[key])
    form = rng.choice(("{}", "{}", "[{}, 8]", "{{{}: 1}}", "{{{}}}", "-{}", "{} + 1j"))
    made[key] = form.format(rng.choice(literals))
    return made


def _multiplied(rng: random.Random) -> bytes:
    """Return a setting that repeats another one, which repeats another one, and so on."""
    count, times = rng.choice((3, 9, 30)), rng.choice((2, 9))
    form = rng.choice(("[{}]", "{{<<: [{}]}}", "{{a: [{}]}}"))
    begin = "{a: 1}" if "<<" in form else "[1]"
    lines = [f"  - &a0 {begin}"]
    for number in range(count):
        lines.append(f"  - &a{number + 1} " + form.format(", ".join([f"*a{number}"] * times)))
    name = rng.choice(("size", "before", "after", "cars", "x"))
    return f"{name}:\n".encode() + "\n".join(lines).encode() + b"\n"
