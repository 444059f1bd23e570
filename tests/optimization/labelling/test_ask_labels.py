"""Whole runs on a small real model: the judgement of all labels, from a few of them."""

from __future__ import annotations

import csv
import dataclasses
import http.client
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.digits import COARSE, classifier, digits
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.certificate.betting import BettingPrior
from hasten.certificate.verdict import Judgement
from hasten.cli import main
from hasten.core.progress import Progress
from hasten.core.tensors import Array
from hasten.errors import InputError, LabelsWanted
from hasten.inputs.data.samples import tensors_hash
from hasten.optimization.labelling.samples import Sample
from hasten.reporting.result import Result

pytestmark = pytest.mark.seconds


class Place:
    """A folder with the classifier, the images, and a run that waits for labels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = classifier(folder)
        self.images, self.labels = digits()
        self.class_of = {
            f"s{tensors_hash({'image': image}).hex()[:16]}": int(label)
            for image, label in zip(self.images, self.labels, strict=True)
        }

    def run(self, labels: Array | None, name: str, **options: Any) -> Result:
        given = self.images if labels is None else (self.images, labels)
        with quick_runs(races=False):
            return hasten.optimize(
                self.model,
                given,
                max_drop=0.025,
                calibration=60,
                engines=(COARSE,),
                out=self.folder / name,
                **options,
            )

    def waiting(self, name: str) -> Path:
        """Copy the run that waits for labels, with its folder of labels, and return that."""
        for kind in ("work", "labels"):
            shutil.copytree(self.folder / f"asked.{kind}", self.folder / f"{name}.{kind}")
        return self.folder / f"{name}.labels"

    def fill(self, table: Path, count: int | None = None, *, wrong: bool = False) -> list[str]:
        """Fill in labels of a table, of the first few or of all; return the identifiers."""
        with table.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows[:count]:
            row["label"] = str((self.class_of[row["id"]] + wrong) % 10)
        with table.open("w") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return [row["id"] for row in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(tmp_path_factory.mktemp("digits"))
    with pytest.raises(LabelsWanted) as wanted:
        found.run(None, "asked", ask_labels="page")
    table = found.folder / "asked.labels"
    assert wanted.value.folder == table
    assert str(wanted.value) == (
        f"{wanted.value.left} of 936 to label: label them in {table / 'index.html'} (or by hasten label "
        f"{table}), and continue with resume=True"
    )
    return found


@pytest.fixture(scope="module")
def known(place: Place) -> Judgement:
    """Judge with every label at hand."""
    found = place.run(place.labels, "known").judgement
    assert found is not None
    return found


def alike(judgement: Judgement | None) -> Judgement:
    """Leave out what the search knew of the candidate, which has fewer labels where few are asked for."""
    assert judgement is not None
    return dataclasses.replace(judgement, prior=BettingPrior())


def test_the_look_is_spent_when_labels_are_asked_for(place: Place) -> None:
    """The questions tell on how many samples answers differ, so who leaves such a run has looked."""
    (journal,) = (place.folder / "asked.work").glob("journal*")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert any(line["kind"] == "look" for line in lines)


def test_labels_where_answers_differ_alone_give_the_judgement_of_all(
    place: Place, known: Judgement, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = place.fill(place.waiting("few") / "labels.csv")
    monkeypatch.setattr("hasten.optimization.sealed.sealed_scores", None)  # it is read once
    result = place.run(None, "few", ask_labels="page", resume=True)
    assert alike(result.judgement) == alike(known)
    assert result.status == "certified", result.why
    assert known.lost is not None
    assert known.gained is not None
    assert known.lost + known.gained <= len(ids) < 0.05 * known.n
    assert known.lost > known.gained > 0
    changed, of_all = (read(place.folder / name).certificate for name in ("few", "known"))
    assert changed is not None
    assert of_all is not None
    for part in ("share", "n", "method"):  # no label says which answers change
        assert changed["changed"][part] == of_all["changed"][part]
    assert any(note.startswith(f"{len(ids)} labels for 936 sealed") for note in result.notes)
    assert not (place.folder / "few.work").exists()
    assert (place.folder / "few.labels" / "labels.csv").exists()  # a person's work is never removed


def test_a_table_left_half_way_is_asked_for_again_and_loses_nothing(place: Place) -> None:
    table = place.waiting("half") / "labels.csv"
    ids = place.fill(table, 1)
    before = table.read_bytes()
    with pytest.raises(LabelsWanted) as wanted:
        place.run(None, "half", ask_labels="page", resume=True)
    assert str(wanted.value).startswith(f"{len(ids) - 1} of 936 to label, 1 is labelled: ")
    assert table.read_bytes() == before
    table.write_text("id,label\ns0,1\n")
    with pytest.raises(InputError, match="there is no sample 's0' to label"):
        place.run(None, "half", ask_labels="page", resume=True)
    result = place.run(None, "half", ask_labels=str(filled_beside(place, ids)), resume=True)
    assert result.status == "certified"


def filled_beside(place: Place, ids: Sequence[str]) -> Path:
    """Write all labels to a file of another name, as a browser's download."""
    file = place.folder / "labels (1).csv"
    lines = [f"{key},{place.class_of[key]}\r\n" for key in reversed(ids)]
    file.write_bytes(b"\xef\xbb\xbfid,label\r\n" + "".join(lines).encode())
    return file


def test_without_its_labels_a_resumed_run_takes_the_worst(place: Place, known: Judgement) -> None:
    ids = place.fill(place.waiting("worst") / "labels.csv", 1)
    result = place.run(None, "worst", resume=True)
    assert result.judgement is not None
    assert known.lost is not None
    assert result.judgement.lost is not None
    assert result.judgement.lost >= len(ids) - 1 > known.lost
    assert result.judgement.bound > known.bound
    assert any(
        f"{len(ids) - 1} of {len(ids)} samples to label got no label" in n for n in result.notes
    )


def test_once_no_further_label_could_matter_none_is_asked_for(
    place: Place, known: Judgement
) -> None:
    ids = place.fill(place.waiting("enough") / "labels.csv", 10)
    result = place.run(None, "enough", ask_labels="page", resume=True)
    assert result.status == "certified", result.why
    assert result.judgement is not None
    assert known.bound < result.judgement.bound <= 0.025
    assert any(
        f"{len(ids) - 10} of {len(ids)} samples to label got no label" in n for n in result.notes
    )


def test_answers_that_were_changed_certify_nothing(place: Place) -> None:
    folder = place.waiting("changed")
    place.fill(folder / "labels.csv")
    kept = place.folder / "changed.work" / "sealed-answers.npz"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="the answers to the sealed data were changed"):
        place.run(None, "changed", resume=True)
    kept.unlink()
    with pytest.raises(InputError, match="No such file or directory; remove the folder"):
        place.run(None, "changed", resume=True)


def test_nobody_who_labels_sees_an_answer(place: Place) -> None:
    folder = place.folder / "asked.labels"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {tuple(row) for row in rows} == {("id", "label", "row")}
    assert all(row["label"] == "" for row in rows)
    places = [int(row["row"]) for row in rows]
    assert places != sorted(places)
    ids = [row["id"] for row in rows]
    assert ids != sorted(ids)
    page = (folder / "index.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert all(item.keys() == {"id", "row", "picture"} for item in data["items"])
    assert [item["id"] for item in data["items"]] == ids
    assert data.keys() == {"key", "items", "classes", "names", "labels"}
    assert data["labels"] == {}


def test_a_run_that_waits_goes_on_as_labels_come(place: Place, known: Judgement) -> None:
    place.waiting("waited")
    told: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.stage != "label":
            return
        told.append(progress.done)
        address = urlsplit(progress.doing.removeprefix("label on "))
        connection = http.client.HTTPConnection(address.netloc, timeout=120)
        connection.request("GET", address.path)
        page = connection.getresponse().read().decode()
        items = json.loads(page.split('id="data">')[1].split("</script>")[0])["items"]
        answers = {item["id"]: str(place.class_of[item["id"]]) for item in items}
        kind = {"Content-Type": "application/json"}
        connection.request("POST", f"{address.path}labels", json.dumps(answers), kind)
        assert connection.getresponse().status == 200

    result = place.run(None, "waited", ask_labels="wait", resume=True, listen=listen)
    assert alike(result.judgement) == alike(known)
    assert told[0] == 0
    assert told[-1] > 0


CALLS: list[int] = []
WORLD: list[Place] = []


def oracle(samples: Sequence[Sample]) -> list[int]:
    CALLS.append(len(samples))
    if len(CALLS) == 2:
        raise RuntimeError("the line is dead")
    place = WORLD[0]
    for sample in samples:
        np.testing.assert_array_equal(place.images[sample.row], sample.inputs["image"])
    return [place.class_of[sample.id] for sample in samples]


def test_a_function_is_asked_and_what_it_told_before_it_failed_is_kept(
    place: Place, known: Judgement, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.waiting("told")
    monkeypatch.setattr("hasten.optimization.labelling.asking.AT_ONCE", 8)
    WORLD[:], CALLS[:] = [place], []
    how = f"{__name__}:oracle"
    with pytest.raises(InputError) as error:
        place.run(None, "told", ask_labels=how, resume=True)
    assert str(error.value).startswith(f"{how} failed: RuntimeError: the line is dead (")
    result = place.run(None, "told", ask_labels=how, resume=True)
    assert alike(result.judgement) == alike(known)
    with (place.folder / "asked.labels" / "labels.csv").open() as file:
        asked = len(list(csv.DictReader(file)))
    assert sum(CALLS) == asked + min(8, asked - 8)  # the failed call's samples were asked again


def test_labels_that_are_missing_in_the_data_count_as_lost_and_a_note_says_so(
    place: Place, known: Judgement
) -> None:
    labels = place.labels.copy()
    labels[np.random.default_rng(0).random(len(labels)) < 0.3] = -1
    result = place.run(labels, "gaps")
    assert result.judgement is not None
    assert result.judgement.metric == "top1"
    assert result.judgement.lost is not None
    assert result.judgement.gained is not None
    assert known.lost is not None
    assert known.gained is not None
    assert result.judgement.lost >= known.lost
    assert result.judgement.gained <= known.gained
    (note,) = (note for note in result.notes if "sealed samples have no label" in note)
    assert "count as lost, which is the worst case" in note
    (own,) = (note for note in result.notes if "the original's own accuracy" in note)
    assert "on 401 samples" not in own  # on those with a label alone


def test_the_command_ends_with_its_own_code_and_says_how_many(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.waiting("told-by-command")
    np.save(place.folder / "images.npy", place.images)
    (place.folder / "given.py").write_text(
        "from pathlib import Path\nimport numpy\n"
        "images = numpy.load(Path(__file__).with_name('images.npy'))\n"
    )
    words = [
        *("optimize", str(place.model), "--data", f"{place.folder / 'given.py'}:images"),
        *("--max-drop", "2.5%", "--calibration", "60", "--engine", COARSE, "--resume"),
        *("--out", str(place.folder / "told-by-command"), "--ask-labels"),
    ]
    with quick_runs(races=False):
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 3, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hasten: ")
    assert " of 936 to label: label them in " in last
    assert last.endswith("and continue with --resume")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ask_labels": "paper"}, "ask_labels takes page, csv, wait, my.py:oracle, or a file "
        "such as labels.csv: got ask_labels='paper'"),
        ({"ask_labels": "os:nothing"}, "can't import 'os:nothing': os has no 'nothing'"),
        ({"ask_labels": "os:sep"}, "os:sep isn't a function; give a function that takes samples "
        "and returns their labels"),
        ({"ask_labels": "page", "guard": "changed"}, "the guard 'changed' bounds how many answers change, so labels don't matter: leave out ask_labels="),
        ({"ask_labels": "page", "metric": "agreement"}, "the metric agreement compares with the "
        "original's answers and uses no labels: leave out ask_labels="),
    ],
)  # fmt: skip
def test_what_no_label_could_settle_is_refused(
    place: Place, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        place.run(None, "refused", **options)
    assert str(error.value) == said
    assert not (place.folder / "refused.work").exists()


def test_classes_of_minus_one_and_one_are_not_taken_for_missing_labels(place: Place) -> None:
    with pytest.raises(InputError) as error:
        place.run(np.where(place.labels > 4, 1, -1), "signs")
    assert str(error.value) == (
        "the labels are -1 and 1, and -1 stands for a missing label: give the classes as 0 and 1"
    )
