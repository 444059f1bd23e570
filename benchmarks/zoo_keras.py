"""The zoo's networks of Keras and TensorFlow, in the three forms in which people have them.

They need hasten's extra keras (`make .venv-keras/.test`); without it each case ends with one line that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import Arrays, Case, pictures

_SIDE, _CLASSES = 32, 8
_CNN = 9 * (32**2 * 3 * 16 + 16**2 * 16 * 32) + 32 * _CLASSES


def _channels_last(rng: np.random.Generator, count: int) -> Arrays:
    drawn = pictures(_SIDE)(rng, count)["x"]
    return {"x": np.ascontiguousarray(drawn.transpose(0, 2, 3, 1))}


def _cnn() -> Any:
    """Return a classifier of pictures of random weights, whose scores are made standard."""
    from hasten.inputs.models.keras import quiet

    with quiet():
        import keras

        layers = keras.layers
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                layers.Input((_SIDE, _SIDE, 3), name="x"),
                *(
                    layers.Conv2D(16, 3, padding="same", use_bias=False),
                    layers.BatchNormalization(),
                ),
                *(layers.ReLU(), layers.MaxPooling2D(2)),
                *(layers.Conv2D(32, 3, padding="same", activation="relu"),),
                *(layers.GlobalAveragePooling2D(), layers.Dense(_CLASSES, name="y")),
            ]
        )
        scores = network(_channels_last(np.random.default_rng(7), 48)["x"]).numpy()
        kernel, bias = network.layers[-1].get_weights()
        scale = scores.std(0)
        network.layers[-1].set_weights([kernel / scale, (bias - scores.mean(0)) / scale])
    return network


def _answers(name: str, network: Any) -> Callable[[Arrays], Arrays]:
    return lambda request: {name: network(request["x"], training=False).numpy()}


def _file(network: Any, folder: Path) -> str:
    network.save(folder / "net.keras")
    return str(folder / "net.keras")


def _saved_model(network: Any, folder: Path) -> str:
    network.export(folder / "saved", verbose=False)
    return str(folder / "saved")


def _tflite(network: Any, folder: Path) -> str:
    import tensorflow

    converter = tensorflow.lite.TFLiteConverter.from_keras_model(network)
    (folder / "net.tflite").write_bytes(converter.convert())
    return str(folder / "net.tflite")


def _case(name: str, family: str, output: str, **settings: Any) -> Case:
    return Case(
        name,
        family,
        _cnn,
        _channels_last,
        outputs=(output,),
        ways=("script",),
        multiplications=_CNN,
        own=partial(_answers, output),
        **settings,
    )


CASES = (
    _case("keras", "Keras", "y", brought=_file),
    _case(
        "saved-model",
        "SavedModel of TensorFlow",
        "output_0",
        brought=_saved_model,
        options=("--trust-code",),
    ),
    _case("tflite", "TFLite", "StatefulPartitionedCall_1", brought=_tflite),
)
