import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.npz import NpzDataset
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import Spool
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.threshold import Threshold

SPECS = (TensorSpec("x", "float32", ("n", 3)),)
X = np.zeros((5, 3), np.float32)


def refused(source: Any, specs: tuple[TensorSpec, ...] = SPECS) -> str:
    with pytest.raises(InputError) as error:
        open_data(source, specs)
    return str(error.value)


def test_each_kind_of_data_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "a.png")
    np.savez(tmp_path / "d.npz", anything=X)
    (tmp_path / "mine.py").write_text("import numpy as np\ndef data(): return [np.zeros(3)]\n")
    opened = [
        open_data(str(tmp_path / "photos"), SPECS, image_pipeline(8)),
        open_data(tmp_path / "d.npz", SPECS),
        open_data(f"{tmp_path / 'mine.py'}:data", SPECS, workdir=tmp_path / "spool"),
        open_data((X, np.arange(5)), SPECS),
        open_data({"x": X}, SPECS),
    ]
    assert [type(data) for data in opened] == [
        ImageFolder,
        NpzDataset,
        Spool,
        ArrayDataset,
        ArrayDataset,
    ]
    assert [data.names for data in opened] == [("x",)] * 5
    assert open_data(opened[0], SPECS) is opened[0]


WORDS = ["dog", "cat", "cat", "", "dog"]
NAMED = Pipeline((), (TopK(2, ("cat", "dog", "cow")),))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_labels_that_are_names_of_classes_become_their_numbers(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    words = np.array(WORDS).reshape(shape)
    np.savez(tmp_path / "d.npz", x=X, labels=words)
    (tmp_path / "mine.py").write_text(
        f"import numpy as np\ndef data(): return np.zeros((5, 3)), {WORDS}\n"
    )
    given: list[Any] = [tmp_path / "d.npz", (X, words), {"x": X, "labels": words}]
    given += [f"{tmp_path / 'mine.py'}:data", list(zip(X, WORDS, strict=True))]
    for source in given:
        labels = open_data(source, SPECS, NAMED).labels
        assert labels is not None
        assert labels.tolist() == [1, 0, 0, NO_NUMBER, 1]
        assert labels.dtype == np.int64


def test_names_of_a_decision_between_two_classes_are_known_too() -> None:
    decision = Threshold(position=1, labels=("cat", "dog"))
    labels = open_data((X, WORDS), SPECS, Pipeline((), (decision,))).labels
    assert labels is not None
    assert labels.tolist() == [1, 0, 0, NO_NUMBER, 1]


def test_labels_that_arent_names_of_classes_stay_as_they_are() -> None:
    unnamed = Pipeline((), (TopK(2),))
    for words, pipeline in ((WORDS, None), (WORDS, unnamed), (["x"] * 5, NAMED)):
        labels = open_data((X, words), SPECS, pipeline).labels
        assert labels is not None
        assert labels.tolist() == words


def test_a_label_that_isnt_among_the_names_of_the_others_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, labels=["cat", "dog", "cow", "hen", "cat"])
    with pytest.raises(InputError) as error:
        open_data(tmp_path / "d.npz", SPECS, NAMED)
    assert str(error.value) == (
        f"{tmp_path / 'd.npz'}: row 4: the label must be one of 'cat', 'dog', 'cow': got 'hen'"
    )


def test_a_temporary_folder_goes_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = open_data(list(X), SPECS)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(data) == 5
    del data
    gc.collect()
    refused([np.zeros(3), np.zeros((2, 2))])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_callers_is_left_alone_or_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    with pytest.raises(InputError):
        open_data([np.zeros(3), np.zeros((2, 2))], SPECS, workdir=folder)
    assert not folder.exists()
    assert len(open_data(list(X), SPECS, workdir=folder)) == 5
    with pytest.raises(InputError) as error:
        open_data(list(X), SPECS, workdir=folder)
    assert str(error.value) == f"{folder} isn't empty: give a new folder to unpack data to"
    assert list(folder.iterdir())


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refused("no.npz") == "no such file: no.npz"
    assert refused(tmp_path / "a:b") == f"no such file: {tmp_path / 'a:b'}"
    assert refused("no_such_module:data") == (
        "can't import 'no_such_module:data': No module named 'no_such_module'"
    )


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.bin").touch()
    assert refused(tmp_path / "d.bin") == (
        f"hasten can't read {tmp_path / 'd.bin'} as data: give an .npz archive, "
        "a folder of images or of sounds, or module:function"
    )


def test_a_folder_of_images_needs_a_pipeline_and_one_input(tmp_path: Path) -> None:
    for pipeline in (None, Pipeline((), (TopK(),))):
        with pytest.raises(InputError) as error:
            open_data(tmp_path, SPECS, pipeline)
        assert str(error.value) == (
            f"{tmp_path} is a folder of images, but nothing states how to prepare them: give a size, "
            "mean and std, or a pipeline file"
        )
    assert refused(tmp_path, ()) == (
        f"{tmp_path} is a folder of images, but the model doesn't name its input: give an .npz "
        "archive or module:function"
    )
    assert refused(tmp_path, (*SPECS, TensorSpec("y", "int64", ()))) == (
        f"{tmp_path} is a folder of images, but the model takes the inputs x, y: "
        "give an .npz archive or module:function"
    )


def test_images_may_have_files_of_text_beside_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / name / "a.png")
        (tmp_path / "photos" / name / "a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "photos" / "README.txt").write_text("Photos of animals")
    data = open_data(tmp_path / "photos", SPECS, image_pipeline(8))
    assert data.labels is not None
    assert (len(data), data.labels.tolist()) == (2, [0, 1])
    for pipeline in (None, Pipeline((), (TopK(),))):
        with pytest.raises(InputError, match="is a folder of images, but nothing states how to"):
            open_data(tmp_path / "photos", SPECS, pipeline)
