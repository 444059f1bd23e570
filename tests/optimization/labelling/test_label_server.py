"""The little server of a labelling page: it keeps labels as they come, for this machine alone."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from tests.support.labelling import labelling_folder

from hasten.cli import main
from hasten.errors import InputError
from hasten.optimization.labelling.answers import Form, read_labels
from hasten.optimization.labelling.folder import LABELS, page_of
from hasten.optimization.labelling.served import served

IDS = ["s1", "s2", "s3"]
ITEMS = [{"id": key, "row": 1, "text": key} for key in IDS]
FORM = Form(3, ("cat", "dog", "cow"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelling_folder(tmp_path / "labels", ITEMS, FORM)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Ask for a path below the page's address; for the path itself, if it begins with a slash."""
    place = urlsplit(address)
    path = path if path.startswith("/") else place.path + path
    connection = http.client.HTTPConnection(place.netloc, timeout=120)
    data = None if body is None else json.dumps(body)
    given = {"Content-Type": "application/json"} if data is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, given)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def labels(folder: Path) -> dict[str, str]:
    return read_labels(folder / LABELS, IDS, FORM)


def test_the_page_is_served_and_labels_are_kept_as_they_come(folder: Path, address: str) -> None:
    assert ask(address, "GET", "") == (200, (folder / "index.html").read_text())
    assert ask(address, "POST", "labels", {"s2": "dog"}) == (200, '{"labelled": 1}')
    assert ask(address, "POST", "labels", {"s1": "2", "s3": "?"})[0] == 200
    assert labels(folder) == {"s1": "2", "s2": "dog", "s3": "?"}
    assert ask(address, "POST", "labels", {"s2": ""}) == (200, '{"labelled": 2}')
    assert json.loads(ask(address, "GET", "labels")[1]) == {"s1": "2", "s3": "?"}
    head = (folder / LABELS).read_text().splitlines()[0]
    assert head == "id,label,text"  # other columns stay


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"s9": "cat"}, "there is no sample 's9' to label"),
        ({"s1": "dog", "s2": "horse"}, "'horse' isn't a class: cat, dog, cow"),
        ({"s1": 1}, "give labels by identifier, as text"),
        (["s1"], "give labels by identifier, as text"),
    ],
)
def test_a_label_that_is_none_changes_nothing(
    folder: Path, address: str, body: Any, said: str
) -> None:
    assert ask(address, "POST", "labels", body) == (400, said)
    assert labels(folder) == {}


def test_another_site_can_neither_read_nor_write(folder: Path, address: str) -> None:
    assert ask(address, "GET", "labels", Host="evil.example:80")[0] == 403
    assert ask(address, "POST", "labels", {"s1": "cat"}, Host="evil.example")[0] == 403
    assert ask(address, "POST", "labels", {"s1": "cat"}, Origin="http://evil.example")[0] == 403
    assert ask(address, "POST", "labels", {"s1": "cat"}, Content_Type="text/plain")[0] == 403
    assert ask(address, "GET", "../asked.json")[0] == 404
    assert labels(folder) == {}
    assert (
        ask(address, "POST", "labels", {"s1": "cat"}, Origin=f"http://{urlsplit(address).netloc}")[
            0
        ]
        == 200
    )


def test_another_user_who_finds_the_port_can_neither_read_nor_write(
    folder: Path, address: str
) -> None:
    said = "open the address that hasten printed"
    for path in ("/", "/index.html", "/labels", f"{urlsplit(address).path[:-2]}x/labels"):
        assert ask(address, "GET", path) == (404, said)
        assert ask(address, "POST", path, {"s1": "cat"})[0] == 400
    assert labels(folder) == {}


def test_labels_of_many_requests_at_once_are_all_kept(folder: Path, address: str) -> None:
    given = {"s1": "cat", "s2": "dog", "s3": "cow"}
    threads = [
        threading.Thread(target=ask, args=(address, "POST", "labels", {key: label}))
        for key, label in given.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels(folder) == given


def test_a_table_that_a_person_spoiled_is_said_and_never_overwritten(
    folder: Path, address: str
) -> None:
    spoiled = "id,label\ns1,horse\n"
    (folder / LABELS).write_text(spoiled)
    status, said = ask(address, "POST", "labels", {"s2": "dog"})
    assert (status, said) == (
        400,
        f"{folder / LABELS}, line 2: sample s1: 'horse' isn't a class: cat, dog, cow",
    )
    assert (folder / LABELS).read_text() == spoiled


def test_a_folder_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["label", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr == (
        f"hasten: {tmp_path} has no samples to label: hasten optimize --ask-labels writes such a folder\n"
    )
    (tmp_path / "asked.json").write_text('{"schema": 9}')
    with pytest.raises(
        InputError, match="is damaged, or another version of hasten wrote it; ask for labels again"
    ):
        with served(tmp_path):
            pass


def test_no_text_of_a_sample_ends_the_script_that_holds_it() -> None:
    item = {"id": "s1", "row": 1, "text": "</script><script>alert(1)</script>"}
    page = page_of([item], FORM, {}, "0" * 64).decode()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
