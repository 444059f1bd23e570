"""A chain as a whole against the chain of its exact models, stage by stage; and its cold start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support import chains
from tests.support.bundles import forge
from tests.support.chains import png, squares
from tests.support.quick import quick_runs

import hasten
from hasten.cli import main
from hasten.errors import CandidateError, InputError

pytestmark = pytest.mark.seconds

WAY = [
    "decode",
    *("det prepare", "det run", "det decide"),
    "crop cut",
    *("colour prepare", "colour run", "colour decide"),
]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chain")
    return f"{chains.detector(folder)}+crop+{chains.classifier(folder, winner=2 * np.eye(3))}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with two squares, and one without any."""
    folder = tmp_path_factory.mktemp("photos")
    for place in range(3):
        (folder / f"{place}.png").write_bytes(png(squares({(place, 1): "red", (2, 5): "green"})))
    (folder / "none.png").write_bytes(png(squares({})))
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_each_part_of_both_chains_is_told_and_the_shares_are_of_the_whole(
    line: str, photos: Path
) -> None:
    result = hasten.bench(line, data=photos, end_to_end=True, rounds=3)
    assert (result.against.role, result.bundle.role) == ("exact chain", "chain")
    assert (result.against.statistic, result.bundle.statistic) == ("mean", "mean")
    assert result.requests == f"4 files of {photos}"
    for stages in (result.stages, result.stages_against):
        assert [stage.name for stage in stages] == WAY
        assert sum(stage.share for stage in stages) == pytest.approx(1)
        assert all(0 <= stage.p50_ns <= stage.p99_ns for stage in stages)
    assert "chain" in result._repr_html_()


def test_the_command_prints_both_chains(line: str, photos: Path) -> None:
    done = run("bench", line, "--end-to-end", "--data", photos)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    head = next(one for one in lines if one.startswith("stage"))
    assert "exact chain p50" in head
    assert "chain share" in head
    assert all(any(one.startswith(f"{stage}  ") for one in lines) for stage in WAY)
    assert any(one.startswith("note: chains are compared by their mean") for one in lines)


def test_a_chain_is_compared_with_a_function_too(line: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\ndef predict(raw):\n    assert raw[1:4] == b'PNG'\n    time.sleep(0.02)\n"
        "    return []\n"
    )
    function = f"{tmp_path}/mine.py:predict"
    result = hasten.bench(line, against=function, data=photos, end_to_end=True, rounds=3)
    assert result.speedup > 1
    assert (result.against.label, result.stages_against) == (function, ())


def test_a_chains_starts_are_timed_by_stage(line: str, photos: Path) -> None:
    done = run("bench", line, "--cold", "--data", photos, "--starts", 1, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    named = "det: a label; colour: a label"
    kinds = ("empty cache", "filled cache", "no cache", "no cache")
    assert [row["label"] for row in record["rows"]] == [f"{named}, {kind}" for kind in kinds]
    assert all(np.min(row["stages_ns"]) > 0 for row in record["rows"])


@pytest.mark.parametrize("part", ["winner", "exact"])
def test_the_chain_asks_the_winners_and_the_exact_chain_the_exact_models(
    photos: Path, tmp_path: Path, part: str
) -> None:
    detector = chains.detector(tmp_path)
    classifier = chains.classifier(tmp_path, winner=2 * np.eye(3))
    folder = "model" if part == "winner" else "exact"
    (model,) = (classifier / folder).iterdir()
    forge(classifier, files={f"{folder}/{model.name}": b"no model"})
    with pytest.raises((CandidateError, InputError), match=r"^[^\n]*colour[^\n]*$"):
        hasten.bench(f"{detector}+crop+{classifier}", data=photos, end_to_end=True, rounds=3)


def test_a_file_that_can_not_be_answered_is_named(line: str, photos: Path, tmp_path: Path) -> None:
    for photo in photos.iterdir():
        (tmp_path / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as error:
        hasten.bench(line, data=tmp_path, end_to_end=True, rounds=3)
    assert str(error.value) == (
        f"the baseline failed: {tmp_path}/broken.png can't be answered: the image can't be read as an image: "
        "it is no whole BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP file; it begins with b'no picture'"
    )


def test_a_chain_whose_bundle_has_no_exact_model_is_named(photos: Path, tmp_path: Path) -> None:
    detector, classifier = chains.detector(tmp_path), chains.classifier(tmp_path)
    forge(classifier, lambda record: record.update(exact=None))
    with pytest.raises(InputError) as error:
        hasten.bench(f"{detector}+crop+{classifier}", data=photos, end_to_end=True)
    assert str(error.value) == (
        "colour: its bundle has no exact model, so there is no exact chain: say what to compare with in "
        "against="
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("bench", "{line}"),
            "{line} is a chain, which is measured from bytes to decision: give --end-to-end and a folder "
            "of pictures as --data, and no pipeline or operator library",
        ),
        (
            ("bench", "{line}", "--end-to-end", "--data", "{photos}", "--against", "mine.onnx"),
            "a chain is compared with a function that gets a file's bytes, my.py:predict: got mine.onnx",
        ),
        (
            ("bench", "{line}", "--cold"),
            "a chain's first answer is about a file: give a folder of files in --data",
        ),
        (
            ("bench", "{line}", "--cold", "--data", "{photos}", "--end-to-end"),
            "--cold starts only the chain: leave out everything except --data and --starts",
        ),
        (
            ("bench", "{line}", "--scenario", "offline"),
            "{line} is a chain, which runs under load in a server: start hasten serve CHAIN, and ask it by "
            "hasten loadtest URL --model NAME --data FOLDER",
        ),
        (
            ("inspect", "{line}"),
            "{line} is a chain: inspect its bundles one by one ({bundles}); hasten bench {line} --end-to-end "
            "--data FOLDER shows where a chain's time goes",
        ),
        (
            ("profile", "{line}"),
            "{line} is a chain: profile its bundles one by one ({bundles}); hasten bench {line} --end-to-end "
            "--data FOLDER shows where a chain's time goes",
        ),
    ],
)
def test_what_a_chain_does_not_take_is_one_line(
    words: tuple[str, ...], said: str, line: str, photos: Path
) -> None:
    told = {"line": line, "photos": str(photos), "bundles": line.replace("+crop+", ", ")}
    done = run(*(word.format(**told) for word in words))
    assert (done.exit_code, done.stderr) == (2, f"hasten: {said.format(**told)}\n")
