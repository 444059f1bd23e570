"""Chains as values: what fits together, how they are written, and that a record gives them back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.records import from_record, to_record
from hasten.errors import InputError, IntegrityError
from hasten.inputs.chains import Chain, Crop, Model, Node, When, chain_of, is_chain
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.classes import TopK

DET, CROP, READ = Model("det", "det.hasten"), Crop("crop", "det"), Model("read", "r.hasten", "crop")


def test_a_line_names_models_by_their_folders_and_links_them_by_crops() -> None:
    line = "models/det.hasten+crop+models/a b.hasten+crop+models/det.hasten"
    assert chain_of(line).nodes == (
        Model("det", "models/det.hasten"),
        Crop("crop", "det"),
        Model("a_b", "models/a b.hasten", "crop"),
        Crop("crop_2", "a_b"),
        Model("det_2", "models/det.hasten", "crop_2"),
    )
    assert chain_of("det.hasten").nodes == (DET,)


@pytest.mark.parametrize("line", ["", "+", "a+b", "a+crop", "crop+a", "a+crop+crop", "a++b"])
def test_a_line_without_a_crop_between_two_bundles_is_refused(line: str) -> None:
    with pytest.raises(InputError) as error:
        chain_of(line)
    assert str(error.value) == (
        f"{line!r} isn't a chain: give bundles with crop between them, such as "
        "det.hasten+crop+ocr.hasten, or a chain.yaml"
    )


def test_a_folder_or_an_address_with_a_plus_is_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "c++.hasten").mkdir()
    assert not is_chain(tmp_path / "c++.hasten")
    (tmp_path / "a+b.hastenz").touch()  # one that is packed
    assert not is_chain(tmp_path / "a+b.hastenz")
    assert not is_chain("det.hasten")
    for address in ("https://h.example/a+b.hastenz", "http://h.example/a+b.yaml"):
        assert not is_chain(address)
        assert not is_chain(Path(address))
    assert is_chain("det.hasten+crop+ocr.hasten")
    assert is_chain(Path("chain.yaml"))


def test_a_record_gives_back_the_chain() -> None:
    chain = Chain((READ, CROP, DET, When("sure", "read", ("A", "B"), 0.5, below=0.9)))
    assert from_record(Chain, json.loads(json.dumps(to_record(chain)))) == chain
    assert [node.name for node in chain.in_order] == ["det", "crop", "read", "sure"]
    with pytest.raises(IntegrityError, match="isn't installed: it's no node of a chain"):
        from_record(Chain, {"nodes": [{"type": "os:system", "name": "a"}]})


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((), "a chain has 1 to 64 nodes; got 0"),
        ((DET, DET), "two nodes of the chain are named det: rename one"),
        (
            (DET, Crop("crop", "dte")),
            "crop takes 'dte', which isn't there; there are source, det",
        ),
        (
            (DET, Model("read", "r.hasten", "det")),
            "read can't take the decision of det: put a crop of its boxes, or a when, between them",
        ),
        (
            (DET, CROP, Crop("again", "crop")),
            "again needs the boxes of a model; crop is a crop",
        ),
        (
            (DET, When("sure", "source")),
            "sure needs the decision of a model; source is what the chain is given",
        ),
        (
            (Model("a", "a.hasten", "c"), Crop("c", "b"), Model("b", "b.hasten", "d"), Crop("d", "a")),
            "nodes of the chain wait for each other: a <- c <- b <- d <- a",
        ),
    ],
)  # fmt: skip
def test_nodes_that_do_not_fit_each_other_are_refused(nodes: tuple[Node, ...], words: str) -> None:
    with pytest.raises(InputError) as error:
        Chain(nodes)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Model("box", "b"), "'box' can't be the name of a chain's node"),
        (lambda: Model("a b", "b"), "'a b' can't be the name of a chain's node"),
        (lambda: Crop("c", "det", margin=-1), "c.margin=-1: give a share from 0 to 10"),
        (lambda: Crop("c", "det", margin=float("nan")), "c.margin=nan: give a share from 0 to 10"),
        (lambda: Crop("c", "det", least_size=0), "c.least_size=0: give 1 to 65536"),
        (lambda: Crop("c", "det", most=10**9), "c.most=1000000000: give 1 to 10000"),
        (lambda: When("w", "det", least_score=float("inf")), "w.least_score=inf: give a finite"),
        (
            lambda: When("w", "det", least_score=0.5, below=0.5),
            "w: no score is at least 0.5 and below 0.5",
        ),
    ],
)
def test_settings_that_can_not_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(words)


def test_a_file_states_nodes_by_name_with_paths_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(
        """
        det: {model: det.hasten}
        crop: {crop: det, labels: [car, bus], margin: 0.1, least_size: 16}
        sure: {when: kind, least_score: 0.5}
        kind: {model: /models/kind.hasten, source: crop}
        """
    )
    assert chain_of(path).nodes == (
        Model("det", str(tmp_path / "det.hasten")),
        Crop("crop", "det", ("car", "bus"), margin=0.1, least_size=16),
        When("sure", "kind", least_score=0.5),
        Model("kind", "/models/kind.hasten", "crop"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "give one node per name, as in `cars: {model: det.hasten}`"),
        ("a: {module: b}", "a: say what it is with one of model, crop, when"),
        ("a: {model: b, crop: c}", "a: say what it is with one of model, crop, when"),
        ("a: {model: b, name: c}", "a: a model has no setting name"),
        ("a: {model: b, size: 3}", "a: model has no setting size"),
        ("a: {model: 3}", "a: a Model record can't be read: Expected `str`, got `int` - at `$.bundle`"),
        ("a: {model: b, source: a}", "a can't take the decision of a: put a crop of its boxes, or a when"),
        ("a: !!python/object/apply:os.system [ls]", "can't be read as YAML"),
        ("#" * 70_000, "has more than 65,536 bytes, too many for a chain"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_chain_says_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        chain_of(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        chain_of(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("box", "settings", "area"),
    [
        ([10, 20, 30, 60], {}, (20, 60, 10, 30)),
        ([10.2, 20.7, 29.9, 59.1], {}, (20, 60, 10, 30)),
        ([10, 20, 30, 60], {"margin": 0.1}, (16, 64, 8, 32)),
        ([-50, -50, 500, 500], {}, (0, 80, 0, 100)),
        ([90, 70, 120, 120], {"margin": 0.5}, (45, 80, 75, 100)),
        ([10, 20, 13, 60], {}, None),
        ([30, 60, 10, 20], {}, None),
        ([200, 200, 300, 300], {}, None),
        ([float("nan"), 0, 50, 50], {}, None),
        ([0, 0, float("inf"), 50], {}, None),
    ],
)
def test_a_crop_is_whole_pixels_that_hold_the_box_within_the_picture(
    box: list[float], settings: dict[str, float], area: tuple[int, ...] | None
) -> None:
    crop = Crop("crop", "det", **settings)  # type: ignore[arg-type]
    assert crop.area(box, height=80, width=100) == area


CLASSES = [{"class": 1, "label": "cat", "score": 0.6}, {"class": 2, "label": "dog", "score": 0.4}]
BOXES = [{**one, "box": [0, 0, 1, 1]} for one in CLASSES]


@pytest.mark.parametrize(
    ("settings", "classes", "boxes"),
    [
        ({}, True, True),
        ({"labels": ("cat",)}, True, True),
        ({"labels": ("dog",)}, False, True),
        ({"labels": ("1",)}, True, True),
        ({"least_score": 0.6}, True, True),
        ({"below": 0.6}, False, True),
        ({"labels": ("dog",), "least_score": 0.5}, False, False),
    ],
)
def test_a_condition_asks_for_the_likeliest_class_or_for_any_box(
    settings: dict[str, Any], classes: bool, boxes: bool
) -> None:
    when = When("when", "model", **settings)
    assert when.holds(CLASSES) is classes
    assert when.holds(BOXES) is boxes
    assert not when.holds([])
    with pytest.raises(InputError) as error:
        when.holds("a text")
    assert str(error.value) == ("when needs classes or boxes, a list of dicts; the decision is str")


@pytest.mark.parametrize(
    ("settings", "sure", "unsure"),
    [
        ({"below": 0.8}, False, True),
        ({"least_score": 0.8}, True, False),
        ({"labels": ("a",)}, True, True),
        ({"labels": ("b",)}, False, False),
        ({"labels": ("a",), "below": 0.8}, False, True),
    ],
)
def test_a_condition_reads_the_likeliest_class_of_a_step_that_may_abstain_too(
    settings: dict[str, Any], sure: bool, unsure: bool
) -> None:
    step, when = TopK(labels=("a", "b"), least=0.8), When("when", "model", **settings)
    decisions = [step({"x": np.array([x, 0], np.float32)}, Origin()) for x in (5, 0.5)]
    assert [one["abstained"] for one in decisions] == [False, True]
    assert [when.holds(one) for one in decisions] == [sure, unsure]


@pytest.mark.parametrize(
    ("settings", "refused"), [({"below": 0.8}, True), ({"labels": ("a",)}, False)]
)
def test_a_condition_on_a_score_refuses_a_decision_without_one(
    settings: dict[str, Any], refused: bool
) -> None:
    when, read = When("when", "model", **settings), {"text": "AB 12", "confidence": 0.4}
    for decision in (read, {"abstained": True, "least": 0.9, "likeliest": read}):
        if not refused:
            assert not when.holds(decision)
            continue
        with pytest.raises(InputError) as error:
            when.holds(decision)
        assert str(error.value) == ("when asks for a score; the decision has only text, confidence")


@pytest.mark.parametrize("settings", [{"least_score": 0.5}, {"below": 0.8}, {"least_score": -1.0}])
@pytest.mark.parametrize("box", [{}, {"box": [0, 0, 1, 1]}], ids=["class", "box"])
def test_a_score_is_asked_of_each_class_and_box(
    settings: dict[str, float], box: dict[str, Any]
) -> None:
    scored, bare = {"class": 1, "score": 0.7, **box}, {"class": 1, **box}
    when = When("when", "model", **settings)  # type: ignore[arg-type]
    assert when.holds([scored])
    refused = [[bare], [{**bare, "score": None}], {"abstained": False, "classes": [bare]}]
    for decision in (*refused, *([[scored, bare]] if box else [])):
        with pytest.raises(
            InputError, match=r"^when asks for a score; the decision has only class"
        ):
            when.holds(decision)
    assert When("when", "model", ("1",)).holds([bare])
    assert When("when", "model", ("1",), least_score=0.0).holds([bare])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, True),
        ({"labels": ("1",)}, True),
        ({"least_score": 0.0}, False),
        ({"least_score": -1.0}, True),
        ({"below": 0.0}, True),
        ({"below": -0.5}, False),
    ],
)
def test_a_score_below_zero_is_refused_only_where_that_is_asked_for(
    settings: dict[str, Any], told: bool
) -> None:
    """As of a model whose last layer has no softmax."""
    one = {"class": 1, "score": -0.5}
    box = {**one, "box": [0, 0, 1, 1]}
    when = When("when", "model", **settings)
    assert when.holds([one]) is when.holds([box]) is told
    assert when.holds({"abstained": False, "classes": [one]}) is told
    if "below" not in settings:
        assert Crop("crop", "det", **settings).wants(box) is told


def test_a_crop_by_score_refuses_boxes_without_one() -> None:
    bare = {"class": 1, "box": [0, 0, 1, 1]}
    assert Crop("crop", "det").wants(bare)
    assert Crop("crop", "det", (), 0.0, margin=0.1).wants(bare)
    with pytest.raises(InputError) as error:
        Crop("crop", "det", least_score=0.5).wants(bare)
    assert str(error.value) == "crop asks for a score; the decision has only class, box"
