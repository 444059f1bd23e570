"""Files of Keras: values in their JSON, bytes of their weights and other members are changed."""

from __future__ import annotations

import json
import random
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.surface import Surface
from fuzz.surfaces.archives import archive_of, members_of, quietly

_WORDS = (
    *("Dense", "Lambda", "TFSMLayer", "Functional", "Sequential", "function", "__numpy__", "GRU"),
    *("keras", "keras.layers", "keras.utils", "keras.src.layers.core.dense", "os", "subprocess"),
    *("relu", "get_file", "system", "float16", "int8", "/etc/hostname", "\x1b[2J", "x", "stateful"),
)
_MEMBERS = ("config.json", "model.weights.h5", "metadata.json", "assets/a", "../a", "a.npz")
_DENSE: dict[str, Any] = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {"name": "dense", "units": 3, "activation": "relu", "dtype": "float32"},
    "registered_name": None,
    "build_config": {"input_shape": [None, 4]},
}
_PLAIN: dict[str, Any] = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {"name": "plain", "layers": [_DENSE], "build_input_shape": [None, 4]},
    "registered_name": None,
}


class KerasFiles(Surface):
    """Archives that keras loads where it is installed; what is loaded may begin no other program.

    TensorFlow, which keras imports where it is installed, has threads that don't survive a fork.
    """

    name = "keras"
    most_s = 10.0
    most_mib = 400

    def seeds(self) -> list[bytes]:
        """Return files of keras; without it, one of its configuration alone."""
        try:
            import keras  # noqa: F401
        except ImportError:
            members = [("config.json", json.dumps(_PLAIN).encode()), ("model.weights.h5", b"")]
            return [archive_of(members, zipfile.ZIP_STORED)]
        # A process that has calculated has threads, which the processes that are forked from it would wait for.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            return apart.submit(_saved, str(self.folder)).result()

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.1:
            return changed_bytes(seed, rng)
        members = members_of(seed)
        kind = rng.random()
        if kind < 0.7:
            change = changed_leaves if kind < 0.5 else changed_record
            record = change(json.loads(members["config.json"]), rng, _WORDS)
            members["config.json"] = json.dumps(record).encode()
        elif kind < 0.95:
            name = "model.weights.h5"
            members[name] = rng.choice((changed_bytes, changed_bytes, grown))(members[name], rng)
        else:
            members[rng.choice(_MEMBERS)] = rng.choice([*members.values()])
        form = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return archive_of([*members.items()], form)

    def check(self, data: bytes) -> str:
        from hasten.inputs.models.source import find_model

        path = self.folder / "input.keras"
        path.write_bytes(data)
        return quietly(lambda: find_model(path), "loaded")


def _saved(folder: str) -> list[bytes]:
    """Return the files of two models that keras saves."""
    import keras

    layers, found, path = keras.layers, [], Path(folder, "seed.keras")
    given = layers.Input((8, 3), name="x")
    steps = layers.Bidirectional(layers.GRU(2, return_sequences=True))(given)
    ends = layers.MultiHeadAttention(1, 2)(steps, steps)
    picture = [
        layers.Input((8, 8, 3)),
        layers.Normalization(mean=[0.0] * 3, variance=[1.0] * 3),
        layers.SeparableConv2D(2, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]
    for model in (keras.Sequential(picture), keras.Model(given, ends)):
        model.save(path)
        found.append(path.read_bytes())
    return found
