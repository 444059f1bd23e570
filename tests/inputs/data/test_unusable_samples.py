"""A sample that can't be used is found before a run begins, wherever the split would put it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hasten
from hasten.core.progress import Progress
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import split
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.image import Decode, ToLayout
from hasten.testing import models

COUNT = 6  # Of which 2 calibrate, 1 is searched on and 3 are sealed.
SEALED = 3


def begun(progress: Progress) -> None:
    raise AssertionError(f"the run began: {progress}")


def refused(folder: Path, model: Path, data: Any, **options: Any) -> str:
    """Return why a run isn't begun, and check that it leaves nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        hasten.optimize(model, data, out=folder / "b.hasten", listen=begun, **options)
    assert sorted(folder.rglob("*")) == before
    return str(error.value)


def features() -> Array:
    return np.random.default_rng(0).standard_normal((COUNT, 16), dtype=np.float32)


def test_part_of_such_small_data_is_sealed() -> None:
    assert len(split(ArrayDataset({"x": features()})).sealed) == SEALED


@pytest.mark.parametrize("given", ["stored", "compressed", "mapping", "function of arrays", "list"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_at_once(
    tmp_path: Path, given: str, bad: float
) -> None:
    model = models.linear_classifier(tmp_path)
    npz, module = tmp_path / "eval.npz", tmp_path / "mine.py"
    module.write_text(f"import numpy as np\ndef data(): return dict(np.load({str(npz)!r}))\n")
    for index in range(COUNT):
        x = features()
        x[index, 3] = bad
        (np.savez_compressed if given == "compressed" else np.savez)(npz, x=x)
        data = {"mapping": {"x": x}, "function of arrays": f"{module}:data", "list": list(x)}
        assert refused(tmp_path, model, data.get(given, npz)) == (
            f"input 'x': sample {index} has NaN or Inf; repair it or leave it out"
        )


class OwnLabels(ArrayDataset):
    """A caller's own data set, which checks nothing when it is made."""

    def __init__(self, x: Array, labels: Array) -> None:
        super().__init__({"x": x})
        self.labels = labels


@pytest.mark.parametrize("given", ["npz", "tuple", "list", "own"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_label_that_is_not_finite_is_refused_at_once(
    tmp_path: Path, given: str, bad: float
) -> None:
    model, x = models.linear_classifier(tmp_path), features()
    for index in range(COUNT):
        labels = np.zeros((COUNT, 2))
        labels[index, 1] = bad
        np.savez(tmp_path / "eval.npz", x=x, labels=labels)
        pairs = list(zip(x, labels, strict=True))
        data = {"tuple": (x, labels), "list": pairs, "own": OwnLabels(x, labels)}
        assert refused(tmp_path, model, data.get(given, tmp_path / "eval.npz")) == (
            f"labels: sample {index} has NaN or Inf; repair it or leave it out"
        )


def photos(folder: Path, kind: str) -> list[Path]:
    """Write photos of noise, which doesn't compress: half a file is half a picture."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.{kind}" for i in range(COUNT)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    return files


@pytest.mark.parametrize(
    ("kind", "why"),
    [("png", r"image file is truncated.*"), ("jpg", r"image file is truncated \(\d+ bytes .*\)")],
)
def test_a_picture_cut_in_the_middle_is_refused_at_once_and_named(
    tmp_path: Path, kind: str, why: str
) -> None:
    model, files = models.small_cnn(tmp_path), photos(tmp_path / "photos", kind)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        line = refused(tmp_path, model, tmp_path / "photos", pipeline=image_pipeline(32))
        assert re.fullmatch(rf"{re.escape(str(file))} can't be read as an image: {why}", line)
        file.write_bytes(whole)


def test_a_picture_of_another_size_is_refused_at_once(tmp_path: Path) -> None:
    model, files = models.small_cnn(tmp_path), photos(tmp_path / "photos", "png")
    unsized = Pipeline((Decode(), ToLayout()))
    for file in files:
        Image.open(file).resize((32, 32)).save(file)
    for index, file in enumerate(files[1:], 1):
        whole = file.read_bytes()
        Image.new("RGB", (32, 41)).save(file)
        assert refused(tmp_path, model, tmp_path / "photos", pipeline=unsized) == (
            f"input 'x': sample {index} is [3, 41, 32], and the model takes x: float32[batch, 3, 32, 32], "
            "with dimension 2 fixed at 32: pad, crop or resize all samples to that, or export the model "
            "with that dimension open"
        )
        file.write_bytes(whole)


def test_training_data_are_looked_at_too(tmp_path: Path) -> None:
    model, training = models.linear_classifier(tmp_path), -features()
    training[4, 0] = np.nan
    assert refused(tmp_path, model, features(), training=training) == (
        "input 'x': sample 4 has NaN or Inf; repair it or leave it out"
    )
