import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.inputs.pipeline.test_audio import RATE, encoded, tone

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.evaluation.benchmark import files_of
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.files import FileFolder, sample_files
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.sounds import SoundFolder
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline

pytest.importorskip("soundfile", reason="needs soundfile: hasten[audio]")
PIPELINE = Pipeline((DecodeAudio(), FitLength(RATE // 4)))
INPUT = (TensorSpec("sound", "float32", ("batch", RATE // 4)),)


def sound(path: Path, hertz: float = 440, seconds: float = 0.1, **form: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(tone(hertz, seconds=seconds), **form))
    return path


def refused(source: Any, pipeline: Pipeline | None = PIPELINE, inputs: Any = INPUT) -> str:
    with pytest.raises(InputError) as error:
        open_data(source, inputs, pipeline)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Sounds in each accepted form, in class folders."""
    sound(tmp_path / "low" / "1.wav", 200)
    sound(tmp_path / "low" / "2.flac", 210, kind="FLAC")
    sound(tmp_path / "high" / "3.ogg", 4000, kind="OGG")
    sound(tmp_path / "high" / "4.mp3", 4100, kind="MP3")
    sound(tmp_path / "high" / "5.AIFF", 4200, kind="AIFF")
    return tmp_path


def test_class_folders_of_sounds_are_labels(classes: Path) -> None:
    (classes / "low" / "notes.txt").write_text("not a sound")
    (classes / "low" / "cover.png").write_bytes(b"no sound either")
    data = open_data(classes, INPUT, PIPELINE)
    assert isinstance(data, SoundFolder)
    assert data.classes == ("high", "low")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert [file.name for file in data.files] == ["3.ogg", "4.mp3", "5.AIFF", "1.wav", "2.flac"]
    assert "0 is 'high', 1 is 'low'" in data.numbering
    for index, file in enumerate(data.files):
        np.testing.assert_array_equal(data.inputs([index])["sound"][0], PIPELINE(file))


def test_class_folders_have_the_numbers_that_the_pipeline_gives_their_names(
    classes: Path,
) -> None:
    sound(classes / "unlabelled" / "6.wav")
    data = open_data(classes, INPUT, Pipeline(PIPELINE.steps, (TopK(labels=("low", "high")),)))
    assert isinstance(data, SoundFolder)
    assert data.labels is not None
    assert (data.labels.tolist(), data.numbering) == ([1, 1, 1, 0, 0, NO_NUMBER], "")


def test_sounds_straight_inside_have_no_labels_and_may_have_groups(tmp_path: Path) -> None:
    for number in range(3):
        sound(tmp_path / f"{number}.wav", 300 + number)
    (tmp_path / "groups.csv").write_text("0.wav,ann\n1.wav,bob\n2.wav,ann\n")
    data = open_data(tmp_path, INPUT, PIPELINE)
    assert data.labels is None
    assert data.groups is not None
    assert data.groups.tolist() == ["ann", "bob", "ann"]
    (tmp_path / "groups.csv").write_text("0.wav,ann\n")
    assert refused(tmp_path) == f"{tmp_path / 'groups.csv'} has no line for 1.wav"


def test_sounds_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    files = [sound(tmp_path / f"{number}.wav", 300 + number) for number in range(3)]
    data = open_data(tmp_path, INPUT, PIPELINE)
    sound(files[1], 700)
    np.testing.assert_array_equal(data.inputs([1])["sound"][0], PIPELINE(files[1]))
    files[2].unlink()
    with pytest.raises(InputError) as error:
        data.inputs([2])
    assert str(error.value).startswith(f"{files[2]} can't be read as a sound: ")


def test_a_sound_is_the_same_sample_as_its_numbers_in_an_archive_or_a_chain(
    tmp_path: Path,
) -> None:
    file = sound(tmp_path / "a.wav")
    data = open_data(tmp_path, INPUT, PIPELINE)
    array = ArrayDataset({"sound": np.asarray(PIPELINE(file))[None]})
    assert data.content_hash(0) == array.content_hash(0)
    assert data.content_hash(0) == FileFolder(tmp_path, PIPELINE, INPUT).content_hash(0)


def test_sounds_of_different_lengths_are_ragged(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", seconds=0.1)
    sound(tmp_path / "b.wav", seconds=0.2)
    open_length = (TensorSpec("sound", "float32", ("batch", "samples")),)
    data = open_data(tmp_path, open_length, Pipeline((DecodeAudio(),)))
    shapes = [data.shapes(index)["sound"] for index in range(2)]
    assert (shapes, data.ragged) == ([(RATE // 10,), (RATE // 5,)], True)


def test_a_file_that_is_no_sound_is_named_on_opening(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    bad = tmp_path / "b.wav"
    bad.write_text("no sound")
    assert refused(tmp_path).startswith(f"{bad} can't be read as a sound: ")
    bad.write_bytes(encoded(tone(440), kind="AU"))
    assert refused(tmp_path) == (
        f"{bad} is AU; accepted formats are WAV, WAVEX, RF64, FLAC, OGG, MP3, AIFF"
    )


def test_a_sound_that_fits_no_step_is_named(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", seconds=1)
    short = sound(tmp_path / "b.wav", seconds=0.001)
    spectra = Pipeline((DecodeAudio(), LogMel()))
    data = open_data(tmp_path, (TensorSpec("x", "float32", ("batch", 80, "frames")),), spectra)
    data.content_hash(0)
    with pytest.raises(InputError) as error:
        data.content_hash(1)
    assert str(short) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_does_not_fit_is_refused_in_one_line(classes: Path) -> None:
    what = f"{classes} is a folder of sounds, but"
    assert refused(classes, None) == (
        f"{what} nothing states how to prepare them: give a pipeline file"
    )
    two = (*INPUT, TensorSpec("rate", "int64", ("batch",)))
    assert refused(classes, inputs=two) == (
        f"{what} the model takes the inputs sound, rate: give an .npz archive or module:function"
    )
    assert refused(classes, image_pipeline(8)) == (
        f"{what} the pipeline begins with decode: let it begin with decode_audio, or give an .npz archive "
        "or module:function"
    )
    assert refused(classes, Pipeline((LogMel(),))).startswith(
        f"{what} the pipeline begins with log_mel: let it begin with decode_audio, "
    )
    sound(classes / "7.wav")
    assert "has sounds next to the class folder high: put every sound into" in refused(classes)


def test_a_folder_of_images_is_not_read_as_sounds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b").mkdir()
    assert refused(tmp_path).startswith(f"the class folder {tmp_path / 'b'} has no sounds")
    assert ImageFolder.suffixes.isdisjoint(SoundFolder.suffixes)


def test_without_the_extra_a_folder_of_sounds_says_so(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert refused(classes) == "a folder of sounds needs the extra: pip install 'hasten[audio]'"


def test_of_a_folder_with_sounds_only_those_are_samples_of_requests(classes: Path) -> None:
    (classes / "readme.txt").write_text("not a sound")
    (classes / "high" / "cover.jpg").write_bytes(b"not a sound either")
    names = ["3.ogg", "4.mp3", "5.AIFF", "1.wav", "2.flac"]
    for pipeline in (PIPELINE, None):
        assert [file.name for file in sample_files(classes, pipeline)] == names
    assert [file.name for file in FileFolder(classes, PIPELINE, INPUT).files] == names
    data: Any = open_data(classes, INPUT, PIPELINE)
    assert [file.name for file in data.files] == names
    assert [file.name for file in sample_files(classes, image_pipeline(8))] == ["cover.jpg"]


def test_of_a_folder_with_fewer_sounds_than_pictures_the_sounds_are_a_sound_pipelines(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"a picture")
    file = sound(tmp_path / "c.wav")
    assert sample_files(tmp_path, PIPELINE) == [file]
    assert [file.name for file in sample_files(tmp_path)] == ["a.png", "b.png"]
    assert files_of(tmp_path, PIPELINE) == (file,) * 64
