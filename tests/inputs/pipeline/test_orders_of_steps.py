"""Steps before the model in a wrong order, or given what they don't take: one line that names the step."""

import io
import itertools
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.written import steps_of

THREE = {"mean": [0.5] * 3, "std": [0.5] * 3}
ENTRIES: list[Any] = [
    "decode",
    {"resize": 16},
    {"resize": {"size": 16, "interpolation": "opencv_linear"}},
    {"letterbox": 16},
    {"center_crop": 16},
    {"normalize": THREE},
    {"normalize": {"mean": [0.5], "std": [0.5]}},
    "to_layout",
    {"to_layout": {"layout": "HWC"}},
    {"to_layout": {"dtype": "uint8"}},
    {"tokenize": {"tokenizer": "words.json", "length": 8}},
    "decode_audio",
    {"fit_length": 8000},
    "log_mel",
    "standardize",
    {"row": {"columns": ["a", "b"]}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steps")
    Tokenizer(models.WordLevel({"?": 0, "[PAD]": 1}, unk_token="?")).save(str(path / "words.json"))
    return path


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 30, 3), 100, np.uint8)).save(file, "PNG")
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as whole:
        whole.setparams((1, 2, 16000, 0, "NONE", ""))
        whole.writeframes(bytes(32000))
    return file.getvalue()


def steps(folder: Path, *entries: Any) -> Pipeline:
    return Pipeline(steps_of(Step, list(entries), folder))


def said(pipeline: Pipeline, value: Any) -> str:
    """Return why a pipeline refuses a value; "" where it prepares it."""
    try:
        pipeline.prepared(value)
    except InputError as error:
        return str(error)
    return ""


def test_steps_in_any_order_prepare_a_value_or_refuse_it_in_one_line(folder: Path) -> None:
    values: list[Any] = [
        *(png(), sound(), b"", "text", {"a": 1, "b": 2}, [1, 2], None, 5, Path("no file")),
        *(np.zeros((40, 30, 3), np.uint8), np.zeros((40, 30, 3), np.float32)),
        *(np.zeros((40, 30), np.uint8), np.zeros(20000, np.float32), np.zeros((), np.float32)),
        np.zeros(0, np.float32),
    ]
    for entries in (*((one,) for one in ENTRIES), *itertools.permutations(ENTRIES, 2)):
        pipeline = steps(folder, *entries)
        for value in values:
            assert said(pipeline, value).isprintable(), (entries, value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            ["decode", "to_layout", {"resize": 16}],
            "the step resize takes a picture, (height, width, 3 or 1) of uint8, after decode and before "
            "normalize and to_layout, but gets [3, 40, 30] of float32",
        ),
        (
            ["decode", {"normalize": THREE}, {"letterbox": 16}],
            "the step letterbox takes a picture, (height, width, 3 or 1) of uint8, after decode and before "
            "normalize and to_layout, but gets [40, 30, 3] of float32",
        ),
        (
            [{"resize": 16}, "decode"],
            "the step resize takes a picture, (height, width, 3 or 1) of uint8, after decode and before "
            "normalize and to_layout, but gets a value of type bytes",
        ),
        (
            ["decode", "to_layout", {"center_crop": 16}],
            "the step center_crop takes a picture, (height, width, channels), after decode and before to_layout, "
            "but gets [3, 40, 30] of float32",
        ),
        (
            ["decode", "to_layout", {"normalize": THREE}],
            "the step normalize takes a picture, (height, width, 3 or 1), after decode and before to_layout, but "
            "gets [3, 40, 30] of float32",
        ),
        (
            [{"normalize": THREE}, "to_layout"],
            "the step normalize takes a picture, (height, width, 3 or 1), after decode and before to_layout, but "
            "gets a value of type bytes",
        ),
        (
            ["to_layout"],
            "the step to_layout takes a picture, (height, width, channels), after decode, but gets a value of "
            "type bytes",
        ),
        (
            ["decode", {"fit_length": 8000}],
            "the step fit_length takes a sound, (samples,), after decode_audio, but gets [40, 30, 3] of uint8",
        ),
        (
            ["decode", "log_mel"],
            "the step log_mel takes a sound, (samples,), after decode_audio, but gets [40, 30, 3] of uint8",
        ),
        (
            ["standardize"],
            "the step standardize takes a sound, (samples,), after decode_audio, but gets a value of type bytes",
        ),
    ],
)
def test_a_step_says_what_it_takes_and_what_it_gets(
    folder: Path, entries: list[Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        steps(folder, *entries).prepared(png())
    assert str(error.value) == said


def test_the_center_of_an_array_with_many_channels_is_cut_out(folder: Path) -> None:
    """As of pictures with more than colors, which the user's own code decodes."""
    value = np.arange(40 * 30 * 8, dtype=np.float32).reshape(40, 30, 8)
    (cut, *_) = steps(folder, {"center_crop": 16}, "to_layout").prepared(value)
    np.testing.assert_array_equal(cut, value[12:28, 7:23].transpose(2, 0, 1))
