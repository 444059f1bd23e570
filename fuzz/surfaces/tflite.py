"""TFLite files: bytes of them are changed, and values in the tables of their flatbuffers."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from fuzz.mutation import any_value, changed_bytes, grown, like
from fuzz.outcomes import refused
from fuzz.surface import Surface
from tests.support.tflite import packed, with_custom_operator

from hasten.errors import HastenError
from hasten.inputs.models.onnx import load
from hasten.inputs.models.source import find_model
from hasten.inputs.models.stated_inputs import stated_inputs
from hasten.testing import models

_WORDS = ("", "x", "serving_default_x:0", "a\nb", "\x1b[2J", "x" * 5000)
_TRIES = 20
"""Changes that are tried: a field doesn't take every number."""


class TfliteFiles(Surface):
    """TFLite files, whose inputs are read, and which are loaded where tf2onnx is installed."""

    name = "tflite"
    most_s = 5.0
    most_mib = 128

    def seeds(self) -> list[bytes]:
        from flatbuffers import flexbuffers

        from hasten.engines.litert.tflite.conversion import convert

        made, path = [], self.folder / "input.tflite"
        for make in (models.linear_classifier, models.two_inputs, models.small_cnn):
            convert(load(make(self.folder)), path)
            made.append(path.read_bytes())
        custom = flexbuffers.Dumps({"window_size": 32, "stride": 16, "magnitude_squared": True})
        return [*made, with_custom_operator(made[0], bytes(custom))]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        from ai_edge_litert import schema_py_generated as schema

        kind = rng.random()
        if kind < 0.25:
            return (grown if kind < 0.05 else changed_bytes)(seed, rng)
        whole = schema.ModelT.InitFromPackedBuf(seed)
        for _ in range(_TRIES):
            model = copy.deepcopy(whole)
            for _ in range(rng.choice((1, 1, 2, 4))):
                _change(model, rng)
            try:
                return packed(model)
            except Exception:  # a field of another type or size, which a flatbuffer can't have
                continue
        return changed_bytes(seed, rng)

    def check(self, data: bytes) -> str:
        path = self.folder / "input.tflite"
        path.write_bytes(data)
        found = find_model(path)
        try:
            stated_inputs(found)
        except HastenError as error:
            return refused(error)
        try:
            found.load(None, self.folder)
        except HastenError as error:
            return f"read, then {refused(error)}"
        return "loaded"


def _change(model: Any, rng: random.Random) -> None:
    """Change one value somewhere in a model, or the number of a table's rows."""
    holder, key = rng.choice(list(_places(model)))
    value = holder[key] if isinstance(holder, list) else getattr(holder, key)
    made: Any
    if isinstance(value, list) and value:
        made = list(value)
        match rng.randrange(4):
            case 0:
                del made[rng.randrange(len(made))]
            case 1:
                made += [copy.deepcopy(rng.choice(made))] * rng.choice((1, 2, 1000))
            case 2:
                rng.shuffle(made)
            case _:
                made[rng.randrange(len(made))] = like(made[0], rng, _WORDS)
    elif isinstance(value, bytes):
        made = rng.choice((*_WORDS, changed_bytes(value, rng)))
    else:
        made = like(value, rng, _WORDS) if rng.random() < 0.8 else any_value(rng, _WORDS)
    if isinstance(holder, list):
        holder[key] = made
    else:
        setattr(holder, key, made)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each table or list with each key of it, through all tables; arrays become lists."""
    keys = range(len(value)) if isinstance(value, list) else vars(value)
    for key in list(keys):
        one = value[key] if isinstance(value, list) else getattr(value, key)
        if hasattr(one, "tolist"):
            one = one.tolist()
            setattr(value, key, one)
        yield value, key
        if hasattr(one, "Pack") or (isinstance(one, list) and any(hasattr(x, "Pack") for x in one)):
            yield from _places(one)
