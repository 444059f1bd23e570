import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data import images
from hasten.inputs.data.class_folders import renumbered
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.images import SUFFIXES, ImageFolder
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.splits import Earlier, former_hashes, split
from hasten.inputs.data.spool import write_spool
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.image import Decode, Resize, ToLayout
from hasten.optimization.labelling.wanted import Relabelled

PIPELINE = image_pipeline(8)


@dataclass(frozen=True)
class Halves(Step):
    """Pixels as float16, in which samples had other hashes while types counted; it notes each file's."""

    made: ClassVar[list[Array]] = []

    def __call__(self, value: Array) -> Array:
        self.made.append(value)
        return value.astype(np.float16)


def photo(path: Path, shade: int = 128, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)
    return path


def refused(folder: Path, pipeline: Pipeline = PIPELINE) -> str:
    with pytest.raises(InputError) as error:
        ImageFolder(folder, pipeline, "x")
    return str(error.value)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name, shades in {"dog": [1, 2], "cat": [3], "ant": [4]}.items():
        for shade in shades:
            photo(tmp_path / name / f"{shade}.png", shade)
    return tmp_path


def test_class_folders_in_order_of_their_names_are_the_labels(classes: Path) -> None:
    (classes / "cat" / "notes.txt").write_text("not an image")
    (classes / ".cache").mkdir()
    data = ImageFolder(classes, PIPELINE, "image")
    assert data.classes == ("ant", "cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 2]
    assert [file.name for file in data.files] == ["4.png", "3.png", "1.png", "2.png"]
    assert data.names == ("image",)
    assert data.groups is None


def test_class_folders_have_the_classes_that_the_pipeline_calls_so(classes: Path) -> None:
    photo(classes / "unlabelled" / "5.png", 5)
    names = ("dog", "cow", "cat", "ant")
    data = ImageFolder(classes, Pipeline(PIPELINE.steps, (TopK(labels=names),)), "x")
    assert data.classes == names
    assert data.numbering == ""
    assert data.labels is not None
    assert data.labels.tolist() == [3, 2, 0, 0, NO_NUMBER]


def test_class_folders_of_other_names_are_numbered_in_their_order(classes: Path) -> None:
    data = ImageFolder(classes, Pipeline(PIPELINE.steps, (TopK(labels=("a", "b", "c")),)), "x")
    assert data.classes == ("ant", "cat", "dog")
    assert data.numbering == (
        "classes were numbered by the order of the folders' names; the pipeline's labels name none of "
        "them: 0 is 'ant' ('a'), 1 is 'cat' ('b'), 2 is 'dog' ('c')"
    )


def test_the_numbers_of_classes_are_told_where_nothing_names_them(tmp_path: Path) -> None:
    for name in range(11):
        photo(tmp_path / str(name) / "1.png")
    data = ImageFolder(tmp_path, PIPELINE, "x")
    assert data.numbering == (
        "classes were numbered by the order of the folders' names: 0 is '0', 1 is '1', 2 is '10', ..., "
        "10 is '9'"
    )
    loose = photo(tmp_path / "loose" / "1.png").parent
    assert ImageFolder(loose, PIPELINE, "x").numbering == ""


def test_classes_that_a_bundle_numbered_keep_their_numbers_where_folders_are_missing() -> None:
    """The order of fewer folders would give a class another one's number, and a note alone said so."""
    sealed = {"classes": ["ant", "cat", "dog"]}
    labels = np.array([0, 1, NO_NUMBER, 1])
    found, said = renumbered(labels, ("ant", "dog"), sealed)
    assert found.tolist() == [0, 2, NO_NUMBER, 2]
    assert said.endswith(": 0 is 'ant', 2 is 'dog'")
    for own in ("ant", "cat", "dog"), ("a", "b", "c"):
        assert renumbered(labels, own, sealed) == (labels, "")
    assert renumbered(labels, ("ant", "dog"), {}) == (labels, "")  # of an earlier version
    assert renumbered(labels, ("ant", "dog"), {"classes": [7, {}]}) == (labels, "")
    with pytest.raises(InputError, match="which class the folder 'emu' is"):
        renumbered(labels, ("cat", "dog", "emu"), sealed)  # as many, but cat isn't the first
    with pytest.raises(InputError) as error:
        renumbered(labels, ("ant", "cow"), sealed)
    assert str(error.value) == (
        "nothing says which class the folder 'cow' is: the bundle was made with 3 class folders, such as 'ant', "
        "and no labels of the pipeline name the classes. Name each folder as there"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("dog", "cat"),
            "the folder {}/ant has a name that is none of the 2 classes in the pipeline, "
            "although other folders are named after classes: rename it, or remove it",
        ),
        (
            ("a", "b", "c", "d"),
            "no folder in {} has the name of a class, and nothing else says which class it is: there are 3 "
            "class folders, such as 'ant', and the pipeline's labels are 4 names, such as 'a'. Name each "
            "folder as its class's label, or give one folder for each label, whose names sort in the order "
            "of the labels",
        ),
        (
            ("dog", "cat", "ant", "cat"),
            "the pipeline gives several classes the name of the folder {}/cat: "
            "give each class a name of its own",
        ),
    ],
)
def test_class_folders_that_name_no_class_or_several_are_refused(
    classes: Path, names: tuple[str, ...], message: str
) -> None:
    pipeline = Pipeline(PIPELINE.steps, (TopK(labels=names),))
    assert refused(classes, pipeline) == message.format(classes)


def test_class_folders_are_known_by_names_in_other_letters(classes: Path) -> None:
    pipeline = Pipeline(PIPELINE.steps, (TopK(labels=("DOG", "Cat", "ANT")),))
    data = ImageFolder(classes, pipeline, "x")
    assert data.labels is not None
    assert (data.labels.tolist(), data.numbering) == ([2, 1, 0, 0], "")
    (classes / "Ant").mkdir()
    (classes / "Ant" / "5.png").write_bytes((classes / "ant" / "4.png").read_bytes())
    assert refused(classes, pipeline).startswith(f"no folder in {classes} has the name of a class")


def test_images_straight_inside_have_no_labels(tmp_path: Path) -> None:
    photo(tmp_path / "b.PNG")
    photo(tmp_path / "a.jpg")
    data = ImageFolder(tmp_path, PIPELINE, "x")
    assert (len(data), data.labels, data.classes) == (2, None, None)
    assert [file.name for file in data.files] == ["a.jpg", "b.PNG"]


def test_images_go_through_the_pipeline(classes: Path) -> None:
    data = ImageFolder(classes, PIPELINE, "x")
    read = data.inputs([2, 0])["x"]
    assert read.shape == (2, 3, 8, 8)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[:, 0, 0, 0], [1 / 255, 4 / 255], rtol=1e-6)


def test_content_is_the_files_bytes(classes: Path) -> None:
    (classes / "dog" / "copy.png").write_bytes((classes / "ant" / "4.png").read_bytes())
    data = ImageFolder(classes, PIPELINE, "x")
    hashes = [data.content_hash(i) for i in range(len(data))]
    assert len(hashes) == 5
    assert len(set(hashes)) == 4


def test_a_file_is_hashed_and_prepared_once(classes: Path) -> None:
    data = ImageFolder(classes, PIPELINE, "x")
    first = data.content_hash(1)
    data.files[1].unlink()
    assert data.content_hash(1) == first


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # the latter is a spreadsheet's
def test_groups_are_read_from_a_file(classes: Path, encoding: str) -> None:
    lines = "ant/4.png,v1\ncat/3.png,v2\ndog/1.png,v1\ndog/2.png,v1\n"
    (classes / "groups.csv").write_text(lines, encoding=encoding)
    data = ImageFolder(classes, PIPELINE, "x")
    assert data.groups is not None
    assert data.groups.tolist() == ["v1", "v2", "v1", "v1"]


def test_groups_that_do_not_fit_are_named(classes: Path) -> None:
    table = classes / "groups.csv"
    table.write_text("ant/4.png,v1\n")
    assert refused(classes) == f"{table} has no line for cat/3.png"
    table.write_text("ant/4.png\n")
    assert refused(classes) == f"{table}: the line 'ant/4.png' isn't `path,group`"
    whole = "ant/4.png,v1\ncat/3.png, v1\ndog/1.png,v1 \ndog/2.png,v2\n"
    table.write_text(f"{whole}ant/4.png,v2\n")
    assert refused(classes) == (
        f"{table} has ant/4.png in two groups, 'v1' and 'v2': keep one of them"
    )
    table.write_text(whole.replace("v2", " "))
    assert refused(classes) == (f"{table}: dog/2.png has no group: name one, or a group of its own")
    table.write_text(f"{whole}ant/4.png,v1\ngone.png,v1\ngone.png,v2\n".replace("png,", "png ,"))
    data = ImageFolder(classes, PIPELINE, "x")
    assert data.groups is not None
    assert data.groups.tolist() == ["v1", "v1", "v1", "v2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "ant/4.png,Zoë\n".encode("latin-1"),
            " must contain lines of `path,group` in UTF-8: 'utf-8' codec can't decode byte 0xeb in position 12: invalid continuation byte",
        ),
        (
            b"ant/4.png," + b"v" * 131_073,
            ": line 1: a value has more than 131,072 characters, or a quotation mark has no "
            "end: write a mark inside a cell twice",
        ),
    ],
    ids=["latin-1", "long"],
)
def test_groups_that_can_not_be_read_are_refused_in_one_line(
    classes: Path, content: bytes, said: str
) -> None:
    table = classes / "groups.csv"
    table.write_bytes(content)
    assert refused(classes) == f"{table}{said}"


def test_groups_that_are_a_folder_are_refused(classes: Path) -> None:
    table = classes / "groups.csv"
    table.mkdir()
    (table / "1.png").write_bytes((classes / "ant" / "4.png").read_bytes())
    assert refused(classes) == f"{table} must be a file with lines of `path,group`"


def test_an_empty_class_folder_is_named(classes: Path) -> None:
    (classes / "bee").mkdir()
    assert refused(classes) == (
        f"the class folder {classes / 'bee'} has no images; fill it or remove it"
    )


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert refused(tmp_path) == f"{tmp_path} has no images ({', '.join(sorted(SUFFIXES))})"
    assert refused(tmp_path / "no") == f"no such folder: {tmp_path / 'no'}"


def test_images_beside_class_folders_are_refused(classes: Path) -> None:
    photo(classes / "loose.png")
    assert refused(classes) == (
        f"{classes} has images next to the class folder ant: "
        "put every image into a class folder, or put none into one; images without a class go "
        "into the folder unlabelled"
    )


def test_a_file_that_is_no_image_is_named_on_opening(classes: Path) -> None:
    bad = classes / "dog" / "bad.jpg"
    bad.write_bytes(b"not a photo")
    assert refused(classes).startswith(f"{bad} can't be read as an image: it is no whole BMP, ")


def test_an_image_that_is_cut_short_is_named_on_hashing_and_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    data = ImageFolder(tmp_path, PIPELINE, "x")
    for read in (lambda: data.content_hash(0), lambda: data.inputs([0])):
        with pytest.raises(InputError) as error:
            read()
        assert re.fullmatch(
            rf"{re.escape(str(path))} can't be read as an image: image file is truncated.*",
            str(error.value),
        )


def test_a_file_that_goes_away_is_named(classes: Path) -> None:
    data = ImageFolder(classes, PIPELINE, "x")
    data.files[1].unlink()
    with pytest.raises(InputError) as error:
        data.content_hash(1)
    assert str(error.value) == f"can't read {data.files[1]}: No such file or directory"


def test_images_of_two_sizes_without_a_resize_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png", size=(12, 11))
    data = ImageFolder(tmp_path, Pipeline((Decode(), ToLayout())), "x")
    with pytest.raises(InputError) as error:
        data.inputs([0, 1])
    assert str(error.value) == (
        "input 'x': sample 1 is [3, 11, 12], but the first is [3, 10, 12], so dimension 1 of a "
        "sample isn't fixed by the data; pad, crop or resize all to one shape"
    )


def test_files_are_not_decoded_again_for_hashes_of_older_versions(tmp_path: Path) -> None:
    """A file's hash never depended on the type that its pixels are prepared in."""
    for shade in range(30):
        photo(tmp_path / f"{shade:02}.png", shade)
    data = ImageFolder(tmp_path, Pipeline((Decode(), ToLayout(), Halves())), "x")
    hashes = [data.content_hash(i) for i in range(30)]
    Halves.made.clear()
    part, relabelled = Subset(data, np.arange(20)), Relabelled(data, np.arange(30))
    assert former_hashes(data) == former_hashes(part) == former_hashes(relabelled) == []
    assert data.former_hash(3) is None
    again = split(data, earlier=Earlier(seen=frozenset(one[:16] for one in hashes[:10])))
    assert not set(again.sealed_hashes) & {one.hex() for one in hashes[:10]}
    assert Halves.made == []


SIZES = ((300, 300), (500, 300), (300, 400))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of different shapes."""
    for number, size in enumerate(SIZES):
        photo(tmp_path / "photos" / f"{number}.jpg", size=size)
    return tmp_path / "photos"


def test_pictures_decoded_smaller_have_the_hashes_of_their_files_and_shapes_of_their_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageFolder(photos, Pipeline((Decode(), ToLayout())), "x")
    hashes = [data.content_hash(index) for index in range(3)]
    smaller = Subset(data, np.arange(3)).decoded_to(100)
    assert smaller is not None

    def unread(file: Path) -> str:
        raise AssertionError(f"{file} is hashed again")

    monkeypatch.setattr(images, "file_digest", unread)
    spool = write_spool(smaller, tmp_path / "spool")
    assert [spool.content_hash(index) for index in range(3)] == hashes
    found = [smaller.shapes(index)["x"] for index in range(3)]
    assert found == [spool.inputs([index])["x"].shape[1:] for index in range(3)]
    assert found == [(3, height // 2, width // 2) for width, height in SIZES]
    assert [data.shapes(index)["x"] for index in range(3)] == [(3, h, w) for w, h in SIZES]


def test_pictures_have_shapes_after_they_were_decoded_smaller(photos: Path) -> None:
    data = ImageFolder(photos, Pipeline((Decode(), Resize(32), ToLayout())), "x")
    smaller = data.decoded_to(32)
    assert smaller is not None
    for index in range(3):
        assert smaller.content_hash(index) == data.content_hash(index)
    assert smaller.ragged
    assert data.ragged
    assert data.shapes(1) == smaller.shapes(1) == {"x": (3, 32, 53)}


@dataclass(frozen=True)
class Darker(Step):
    """A step that can't handle pictures of fewer than 200 rows."""

    def __call__(self, value: Array) -> Array:
        scale = 0.5 if len(value) >= 200 else np.nan
        return value.astype(np.float32) * np.float32(scale)


def test_a_picture_that_breaks_only_when_it_is_decoded_smaller_is_refused(photos: Path) -> None:
    data = ImageFolder(photos, Pipeline((Decode(), Darker(), ToLayout())), "x")
    data.content_hash(0)
    smaller = data.decoded_to(100)
    assert smaller is not None
    with pytest.raises(InputError, match="NaN"):
        smaller.content_hash(0)
