"""Files of a folder as requests, to real servers of a chain, of a bundle with a pipeline and of one without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support import chains
from tests.support.chains import png, squares
from tests.support.load_options import grouped
from tests.support.servers import ServerThread, bundle_of

from hasten.cli import main
from hasten.errors import InputError
from hasten.evaluation.loadtest import LoadTestResult, raw_samples, run
from hasten.evaluation.loadtest.raw_samples import raw_requests
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import Row
from hasten.serving.run import settings_of
from hasten.testing import models

COLUMNS = tuple(f"c{number}" for number in range(16))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server of a chain, a classifier of pictures, one of rows, and one that takes tensors only."""
    folder = tmp_path_factory.mktemp("models")
    detector, classifier = chains.detector(folder), chains.classifier(folder)
    linear = models.linear_classifier(folder)
    rows = bundle_of(folder, linear, "rows", pipeline=Pipeline((Row(COLUMNS),), (TopK(1),)))
    served = {
        "plates": f"{detector}+crop+{classifier}",
        "colour": classifier,
        "rows": rows,
        "tensors": bundle_of(folder, linear, "tensors"),
    }
    places = settings_of([f"{name}={place}" for name, place in served.items()]).models
    with ServerThread(*places, grpc=True) as running:
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "inside").mkdir()
    for place in range(3):
        picture = png(squares({(place, 1): "red", (2, 5): "green"}))
        (folder / "inside" / f"{place}.png").write_bytes(picture)
    (folder / "groups.csv").write_text("inside/0.png,a\n")
    return folder


def load(server: ServerThread, model: str, data: Path, **options: Any) -> LoadTestResult:
    url = f"grpc://{server.grpc_url}" if options.pop("grpc", False) else server.http_url
    given: dict[str, Any] = {"warmup_s": 0.0, "grace_s": 60.0, "data": data, **options}
    return run(url, model, 40.0, 0.5, arrivals="constant", **grouped(given))


def kinds(found: LoadTestResult) -> dict[tuple[str, str], int]:
    return {(one.kind, one.status): one.count for one in found.outcomes}


@pytest.mark.parametrize("model", ["plates", "colour"])
def test_pictures_are_sent_as_bodies_to_a_chain_and_to_a_bundle_with_a_pipeline(
    server: ServerThread, photos: Path, model: str
) -> None:
    found = load(server, model, photos)
    assert kinds(found) == {("ok", "200"): 20}
    assert (found.offered.encoding, found.offered.payload) == ("plain body", f"files of {photos}")


def test_several_files_or_a_deadline_are_sent_as_the_input_raw(
    server: ServerThread, photos: Path
) -> None:
    several = load(server, "colour", photos, batch=2)
    timed = load(server, "plates", photos, deadline_s=600.0)
    assert kinds(several) == kinds(timed) == {("ok", "200"): 20}
    assert {several.offered.encoding, timed.offered.encoding} == {"BYTES"}


def test_grpc_sends_files_too(server: ServerThread, photos: Path) -> None:
    assert kinds(load(server, "plates", photos, grpc=True)) == {("ok", "OK"): 20}


def test_rows_in_files_are_sent_as_json(server: ServerThread, tmp_path: Path) -> None:
    for number in range(3):
        row = dict.fromkeys(COLUMNS, float(number))
        (tmp_path / f"{number}.json").write_text(json.dumps(row))
    assert kinds(load(server, "rows", tmp_path)) == {("ok", "200"): 20}


def test_a_file_that_the_server_refuses_is_named_before_the_test(
    server: ServerThread, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes((photos / "inside" / "0.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    for grpc, start in (
        (False, f"{server.http_url} answers 400 to {tmp_path}/b.png as image/png: "),
        (True, f"grpc://{server.grpc_url} answers INVALID_ARGUMENT to {tmp_path}/b.png: "),
    ):
        with pytest.raises(InputError) as error:
            load(server, "plates", tmp_path, grpc=grpc)
        assert str(error.value).startswith(start)
        assert "\n" not in str(error.value)


def test_a_model_that_takes_no_files_is_named(
    server: ServerThread, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a text")
    for data in (photos, tmp_path):
        done = CliRunner().invoke(
            main,
            ["loadtest", server.http_url, "--model", "tensors", "--rate", "9", "--data", str(data)],
        )
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"hasten: {server.http_url} answers 400 to {data}/")
        assert line.endswith(
            "; does 'tensors' take files, as a chain or a bundle with a pipeline does?"
        )


def test_a_chain_without_files_says_what_to_give(server: ServerThread) -> None:
    done = CliRunner().invoke(
        main, ["loadtest", server.http_url, "--model", "plates", "--rate", "9"]
    )
    assert (done.exit_code, done.stderr) == (
        2,
        "hasten: the model takes raw samples, such as pictures or texts: give a folder of their files "
        "in --data\n",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "{folder} has no files"),
        ({"batch": 0}, "a batch has from 1 to 65536 rows: got 0"),
        (
            {"json_tensors": True},
            "files are sent as they are: leave out json_tensors=True and shapes=",
        ),
        (
            {"shapes": {"raw": (1,)}},
            "files are sent as they are: leave out json_tensors=True and shapes=",
        ),
    ],
)
def test_what_files_can_not_be_is_one_line(
    server: ServerThread, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        load(server, "plates", tmp_path, **options)
    assert str(error.value) == words.format(folder=tmp_path)


def test_each_file_has_its_content_type_and_all_of_them_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.md", "b.txt", "c.csv", "d.json", "e.tokens"):
        (tmp_path / name).write_bytes(b"123")
    found = list(raw_requests(tmp_path, 1))
    assert [one.kind for one in found[1:]] == [
        *("text/plain", "text/plain", "application/json", "application/octet-stream")
    ]
    assert found[0].kind == "text/plain"
    monkeypatch.setattr(raw_samples, "MOST_BYTES", 7)
    assert len(list(raw_requests(tmp_path, 1))) == 2
    with pytest.raises(InputError) as error:
        list(raw_requests(tmp_path, 4))
    assert str(error.value) == (
        f"a request with {tmp_path}/a.md and 3 more takes 1.144e-05 MiB, and the limit is 0 MiB"
    )


def test_of_a_folder_with_sounds_only_those_are_sent(tmp_path: Path) -> None:
    for name in ("a.wav", "b.txt", "c.mp3", "labels.csv"):
        (tmp_path / name).write_bytes(b"123")
    found = list(raw_requests(tmp_path, 1))
    assert [one.files[0].name for one in found] == ["a.wav", "c.mp3"]
    assert all(one.kind.startswith("audio/") for one in found)


def test_a_large_folder_is_read_in_part(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03}.txt").write_text(str(number))
    found = [one.files[0].name for one in raw_requests(tmp_path, 1)]
    assert len(found) == len(set(found)) == 64
    assert (found[0], found[-1]) == ("000.txt", "199.txt")
    assert [len(one.files) for one in raw_requests(tmp_path, 7)] == [7] * 29
