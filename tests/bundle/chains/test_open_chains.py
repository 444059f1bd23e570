"""An open chain: from a picture's bytes through a detector and a reader of its boxes to one decision."""

import contextlib
import io
import json
import math
import threading
import warnings
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.bundles import forge
from tests.support.chains import (
    BOXES,
    CELL,
    COLOURS,
    classifier,
    detector,
    gray_reader,
    png,
    squares,
)

import hasten
from hasten.bundle import UnfinishedRun
from hasten.bundle.chains import OpenChain, Stage
from hasten.bundle.chains.opened import pipeline_of
from hasten.bundle.chains.plan import ChainPlan, Member, named
from hasten.bundle.manifest import untimed_yet
from hasten.cli.demos import package_folder
from hasten.errors import BeyondRange, CandidateError, InputError, IntegrityError, UnknownMember
from hasten.inputs.chains import Crop, Model, When, chain_of
from hasten.inputs.chains.graph import Chain
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.ctc import Ctc
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.mask import Mask
from hasten.inputs.pipeline.multi_label import MultiLabel
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.pipeline.vectors import L2Normalize, Quantity

PLACES = {(0, 0): "red", (2, 5): "green", (7, 7): "blue"}


def told(decision: Any, key: str = "colour") -> dict[tuple[int, int], str | None]:
    """Return what a chain read at each row and column of the grid."""
    return {
        (round(one["box"][1]) // CELL, round(one["box"][0]) // CELL): (
            one[key][0]["label"] if one[key] else None
        )
        for one in decision
    }


def test_a_chain_is_not_loaded_as_a_bundle(det: Path, colour: Path) -> None:
    line = f"{det}+crop+{colour}"
    with pytest.raises(InputError) as error:
        hasten.load(line)
    assert str(error.value) == f"{line} is a chain, not a bundle's folder: open it by hasten.chain"


def test_no_member_spins_while_another_answers(det: Path, colour: Path) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        found = [one.properties()["lingering"] for one in chain.members.values()]
    assert found == ["False", "False"]


def test_a_member_that_is_certified_before_its_run_has_finished_says_so(
    det: Path, colour: Path
) -> None:
    why = untimed_yet("sure enough")
    forge(colour, lambda record: record.update(status="certified", why=why))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hasten.chain(f"{det}+crop+{colour}").close()
    said = [str(one.message) for one in caught if one.category is UnfinishedRun]
    assert said == [f"colour: {why}"]


def test_each_box_of_a_picture_gets_the_readers_decision_on_its_crop(
    det: Path, colour: Path
) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        decision = chain.decide(png(squares(PLACES)))
    assert told(decision) == PLACES
    assert json.loads(json.dumps(decision)) == decision
    assert [5 * CELL, 2 * CELL, 6 * CELL, 3 * CELL] in [one["box"] for one in decision]
    assert {one["label"] for one in decision} == {"square"}


def test_a_yes_or_no_is_a_condition_too(det: Path, tmp_path: Path) -> None:
    yes = classifier(
        tmp_path, "yes", after=[Threshold(0.01, position=0, labels=("other", "reddish"))]
    )
    nodes = [
        Model("yes", str(yes)),
        When("red", "yes", labels=("reddish",)),
        Model("det", str(det), "red"),
    ]
    with hasten.chain(nodes) as chain:
        assert len(chain.decide(squares({(1, 1): "red"}))["det"]) == 1
        assert chain.decide(squares({(1, 1): "blue"}))["det"] is None


@pytest.mark.parametrize(("color", "asked"), [("red", True), ("blue", False)])
def test_a_second_model_is_asked_where_the_first_one_abstains(
    tmp_path: Path, color: str, asked: bool
) -> None:
    weights = np.diag([1.0, 1.0, 9.0])  # only blue is sure
    after = [TopK(labels=COLOURS, least=0.8)]
    screen = classifier(tmp_path, "screen", after=after, winner=weights)
    nodes = [
        Model("screen", str(screen)),
        When("unsure", "screen", below=0.8),
        Model("careful", str(classifier(tmp_path, "careful")), "unsure"),
    ]
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., COLOURS.index(color)] = 255
    with hasten.chain(nodes) as chain:
        decision = chain.decide(picture)
    assert decision["screen"]["abstained"] is asked
    assert (decision["careful"] is not None) is asked


def test_crops_come_from_every_pixel_of_a_photo_that_the_detector_decodes_smaller(
    tmp_path: Path, colour: Path
) -> None:
    step = Decode(least=32)
    det = detector(tmp_path)
    forge(det, lambda record: record["pipeline"]["steps"][0].update(least=step.least))
    photo = io.BytesIO()
    Image.fromarray(squares(PLACES)).save(photo, "JPEG", quality=95)
    assert step(photo.getvalue()).shape == (32, 32, 3)
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        assert told(chain.decide(photo.getvalue())) == PLACES
    nodes = [Model("det", str(det)), When("found", "det"), Model("again", str(det), "found")]
    with hasten.chain(nodes) as chain, hasten.load(det) as alone:
        expected = alone.decide(photo.getvalue())
        assert chain.decide(photo.getvalue()) == {"det": expected, "again": expected}


def test_each_model_of_a_chain_gets_the_colors_that_it_takes(
    det: Path, colour: Path, tmp_path: Path
) -> None:
    gray = gray_reader(tmp_path)
    bgr = classifier(tmp_path, "bgr", after=[TopK(labels=COLOURS[::-1])])
    forge(bgr, lambda record: record["pipeline"]["steps"][0].update(colors="BGR"))
    for reader in (gray, bgr):
        with hasten.chain(f"{det}+crop+{reader}") as chain:
            assert told(chain.decide(png(squares(PLACES))), reader.stem) == PLACES
            assert told(chain.decide(squares(PLACES)), reader.stem) == PLACES
    # Models of the source too, one of which is the first.
    roots = [Model(one.stem, str(one)) for one in (bgr, gray, colour)]
    with hasten.chain(roots) as chain:
        for place, label in enumerate(COLOURS):
            whole = np.zeros((40, 50, 3), np.uint8)
            whole[..., place] = 255
            for value in (png(whole), whole):
                firsts = {name: each[0]["label"] for name, each in chain.decide(value).items()}
                assert firsts == {"bgr": label, "gray": label, "colour": label}


def decoding(folder: Path, name: str, **settings: Any) -> Model:
    """Write a classifier whose pipeline decodes pictures with these settings."""
    path = classifier(folder, name)
    forge(path, lambda record: record["pipeline"]["steps"][0].update(settings))
    return Model(name, str(path))


def test_models_that_turn_pictures_differently_cannot_see_one_picture(tmp_path: Path) -> None:
    one, other = decoding(tmp_path, "one"), decoding(tmp_path, "other", orient=False)
    said = (
        "one turns pictures upright as their EXIF data says, but other has decode.orient=False, and a "
        "chain decodes a picture once: make both bundles with the same setting, or ask them apart"
    )
    for nodes in ([one, other], [other, one]):
        with pytest.raises(InputError) as error:
            hasten.chain(nodes)
        assert str(error.value) == said
    det = detector(tmp_path)  # crops are upright already
    with hasten.chain([Model("det", str(det)), Crop("crop", "det"), replace(other, source="crop")]):
        pass


@pytest.mark.parametrize(
    ("side", "loose", "strict", "said"),
    [
        (256, {}, {"max_pixels": 65_535}, "^the image has 256 x 256 pixels, more than 65535$"),
        (
            4000,
            {"memory_per_byte": 0},
            {"memory_per_byte": 1},
            "takes 107 MiB, but only 40 MiB are allowed for so few bytes",
        ),
    ],
)
def test_the_strictest_limits_hold_for_the_picture_that_all_models_see(
    tmp_path: Path, side: int, loose: Any, strict: Any, said: str
) -> None:
    one, other = decoding(tmp_path, "one", **loose), decoding(tmp_path, "other", **strict)
    picture = png(np.zeros((side, side, 3), np.uint8))
    for nodes in ([one, other], [other, one]):
        with hasten.chain(nodes) as chain, pytest.raises(InputError, match=said):
            chain.decide(picture)
    with hasten.chain([one]) as chain:
        chain.decide(picture)


def test_a_file_a_line_nodes_and_a_decoded_picture_give_the_same_decision(
    det: Path, colour: Path, tmp_path: Path
) -> None:
    (tmp_path / "chain.yaml").write_text(
        "det: {model: det.hasten}\ncrop: {crop: det}\ncolour: {model: colour.hasten, source: crop}\n"
    )
    (tmp_path / "street.png").write_bytes(png(squares(PLACES)))
    nodes = [Model("det", str(det)), Crop("crop", "det"), Model("colour", str(colour), "crop")]
    forms: list[Any] = [tmp_path / "chain.yaml", f"{det}+crop+{colour}", nodes]
    decisions = []
    for form in forms:
        with hasten.chain(form) as chain:
            decisions += [chain.decide(tmp_path / "street.png"), chain.decide(squares(PLACES))]
    assert all(decision == decisions[0] for decision in decisions)
    assert told(decisions[0]) == PLACES


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg"])
def test_on_a_photograph_each_reading_is_that_of_the_bundle_alone_on_the_cut_picture(
    name: str, det: Path, colour: Path
) -> None:
    photo = package_folder("skimage", "scikit-image") / "data" / name
    if not photo.exists():
        pytest.skip(f"this scikit-image has no {name}")
    nodes = [Model("det", str(det)), Crop("crop", "det"), Model("colour", str(colour), "crop")]
    with (
        hasten.chain(nodes) as chain,
        hasten.load(det) as detector,
        hasten.load(colour) as reader,
        Image.open(photo) as opened,
    ):
        decision = chain.decide(photo.read_bytes())
        boxes = detector.decide(photo)
        assert len(decision) == len(boxes) > 0
        for one, box in zip(decision, boxes, strict=True):
            assert {key: one[key] for key in box} == box
            x0, y0, x1, y1 = box["box"]
            area = (math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
            (alone,) = reader.decide(np.asarray(opened.convert("RGB").crop(area)))
            assert one["colour"][0]["label"] == alone["label"]
            assert one["colour"][0]["score"] == pytest.approx(alone["score"], rel=1e-4)


@pytest.mark.parametrize(("most_rows", "most_bytes"), [(8, math.inf), (32, 26_000)])
def test_memory_holds_the_prepared_crops_of_one_batch_however_many_boxes_there_are(
    tmp_path: Path, most_rows: int, most_bytes: float
) -> None:
    det, colour = detector(tmp_path, cells=20), classifier(tmp_path)
    picture = squares({(n // 20, n % 20): "red" for n in range(400)}, cells=20)
    with hasten.load(det) as one, hasten.load(colour) as two:
        members = {
            name: Member(pipeline_of(name, each.manifest), each.inputs, most_rows)
            for name, each in (("det", one), ("colour", two))
        }
        plan = ChainPlan(chain_of(f"{det}+crop+{colour}"), members)
        run = plan.run(picture, most_bytes=most_bytes)
        asked: list[weakref.ref[Any]] = []
        ask = next(run)
        rows = []
        with contextlib.suppress(StopIteration):
            while True:
                rows.append(len(ask.requests))
                asked = [ref for ref in asked if ref() is not None]
                assert len(asked) <= 8
                asked += [weakref.ref(request["x"]) for request in ask.requests]
                loaded = one if ask.model == "det" else two
                answers = [loaded.run(request) for request in ask.requests]
                del ask
                ask = run.send(answers)
    assert rows == [1] + [8] * 50


def test_a_picture_without_boxes_gives_no_boxes_and_runs_no_reader(det: Path, colour: Path) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        stages: list[Stage] = []
        assert chain.decide(png(squares({})), stages=stages) == []
    assert {stage.name: stage.samples for stage in stages} == {
        "decode": 1,
        "det": 1,
        "crop": 0,
        "colour": 0,
    }
    assert {stage.name: stage.asks for stage in stages}["colour"] == 0


def test_hundreds_of_boxes_are_read_in_batches_with_the_answers_of_lone_crops(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    places = {
        (row, column): str(rng.choice(COLOURS))
        for row in range(0, 40, 2)
        for column in range(0, 40, 2)
    }
    det, colour = detector(tmp_path, cells=40), classifier(tmp_path)
    picture = squares(places, cells=40)
    with hasten.chain(f"{det}+crop+{colour}", max_batch=1) as lone:
        stages: list[Stage] = []
        expected = lone.decide(picture, stages=stages)
        assert lone.batch_sizes == {"det": (1,), "colour": (1,)}
        assert stages[-1].asks == stages[-1].samples == 400
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        chain.batch_sizes["colour"] = (1, 4, 16)  # whichever are fast here, these are taken
        found = chain.decide(picture)
    assert told(expected) == places
    for one, other in zip(found, expected, strict=True):
        assert one["box"] == other["box"]
        assert one["colour"][0]["label"] == other["colour"][0]["label"]
        assert one["colour"][0]["score"] == pytest.approx(other["colour"][0]["score"], rel=1e-5)


def test_more_boxes_than_the_crop_takes_are_refused(det: Path, colour: Path) -> None:
    nodes = [
        Model("det", str(det)),
        Crop("crop", "det", most=2),
        Model("colour", str(colour), "crop"),
    ]
    with hasten.chain(nodes) as chain, pytest.raises(InputError) as error:
        chain.decide(squares(PLACES))
    assert str(error.value) == (
        "crop: 3 boxes in one picture are more than 2: raise crop.most, or make the detector "
        "return fewer"
    )


def test_a_certified_bundle_is_asked_about_one_crop_at_a_time_unless_told_otherwise(
    det: Path, tmp_path: Path
) -> None:
    colour = classifier(tmp_path, status="certified")
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        assert chain.batch_sizes["colour"] == (1,)
        assert chain.not_certified == ()


def test_a_model_of_one_sample_is_asked_about_one_crop_at_a_time(det: Path, tmp_path: Path) -> None:
    colour = classifier(tmp_path, batch=1)
    with hasten.chain(f"{det}+crop+{colour}", max_batch=16) as chain:
        assert chain.batch_sizes["colour"] == (1,)
        assert told(chain.decide(squares(PLACES))) == PLACES


def test_boxes_that_a_filter_leaves_out_or_that_are_too_small_have_no_reading(
    det: Path, colour: Path
) -> None:
    def read(**settings: Any) -> set[str | None]:
        nodes = [
            Model("det", str(det)),
            Crop("crop", "det", **settings),
            Model("colour", str(colour), "crop"),
        ]
        with hasten.chain(nodes) as chain:
            return set(told(chain.decide(squares(PLACES))).values())

    assert read(labels=("plate",)) == {None}
    assert read(labels=("square",)) == read(labels=("0",)) == set(COLOURS)
    assert read(least_size=CELL) == set(COLOURS)
    assert read(least_size=CELL + 1) == {None}
    assert read(least_size=CELL + 1, margin=0.25) == set(COLOURS)
    assert read(least_score=1.5) == {None}


def test_only_samples_that_fulfil_a_condition_go_on(
    det: Path, colour: Path, tmp_path: Path
) -> None:
    second = classifier(tmp_path, "again")
    nodes = [
        Model("det", str(det)),
        Crop("crop", "det"),
        Model("colour", str(colour), "crop"),
        When("reds", "colour", labels=("red",)),
        Model("again", str(second), "reds"),
    ]
    with hasten.chain(nodes) as chain:
        decision = chain.decide(squares(PLACES))
    assert told(decision) == PLACES
    assert told(decision, "again") == {(0, 0): "red", (2, 5): None, (7, 7): None}


def test_a_condition_on_the_whole_picture_gives_the_decisions_by_name(
    det: Path, colour: Path
) -> None:
    nodes = [
        Model("colour", str(colour)),
        When("red", "colour", labels=("red",)),
        Model("det", str(det), "red"),
    ]
    with hasten.chain(nodes) as chain:
        red = chain.decide(squares({(1, 1): "red"}))
        blue = chain.decide(squares({(1, 1): "blue"}))
    assert red["colour"][0]["label"] == "red"
    assert [one["box"] for one in red["det"]] == [[CELL, CELL, 2 * CELL, 2 * CELL]]
    assert blue == {"colour": blue["colour"], "det": None}


def test_boxes_within_boxes_are_told_in_the_pixels_of_the_source(
    det: Path, colour: Path, tmp_path: Path
) -> None:
    inner = detector(tmp_path, name="inner")
    nodes = [
        Model("det", str(det)),
        Crop("crop", "det", margin=0.5),
        Model("inner", str(inner), "crop"),
        Crop("within", "inner"),
        Model("colour", str(colour), "within"),
    ]
    with hasten.chain(nodes) as chain:
        (outer,) = chain.decide(squares({(3, 4): "green"}))
    # The crop is twice as large as the square, whose cells fill its middle.
    corners = np.array([box["box"] for box in outer["inner"]])
    assert corners[:, :2].min(axis=0).tolist() == [4 * CELL, 3 * CELL]
    assert corners[:, 2:].max(axis=0).tolist() == [5 * CELL, 4 * CELL]
    assert {box["colour"][0]["label"] for box in outer["inner"]} == {"green"}


def test_many_threads_get_each_the_decision_on_their_own_picture(det: Path, colour: Path) -> None:
    rng = np.random.default_rng(1)
    asked = [
        {(int(rng.integers(8)), column): str(rng.choice(COLOURS)) for column in range(0, 8, 2)}
        for _ in range(64)
    ]
    with hasten.chain(f"{det}+crop+{colour}") as chain, ThreadPoolExecutor(16) as threads:
        decisions = list(threads.map(chain.decide, [png(squares(places)) for places in asked]))
    assert [told(decision) for decision in decisions] == asked


def test_a_failing_request_gets_one_error_that_names_the_member_and_others_are_answered(
    det: Path, colour: Path, tmp_path: Path
) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        with pytest.raises(InputError, match=r"^the image can't be read as an image"):
            chain.decide(b"no picture")
        with pytest.raises(InputError) as error:
            chain.decide("street.jpg")
        assert str(error.value) == (
            "a chain takes a picture as a file's bytes, a Path, or an array; got str"
        )
        assert told(chain.decide(squares(PLACES))) == PLACES
        chain.members["colour"].close()
        with pytest.raises(CandidateError, match=r"^colour: "):
            chain.decide(squares(PLACES))
        assert chain.decide(squares({})) == []


def test_a_damaged_member_is_told_from_a_wrong_argument(det: Path, colour: Path) -> None:
    """A server that loads what strangers send must know one from the other."""
    file = colour / hasten.load(colour).manifest.winner.artifact.path
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"^colour: .* was changed after it was written$"):
        hasten.chain(f"{det}+crop+{colour}")
    file.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=r"^colour: .* were written$"):
        hasten.chain(f"{det}+crop+{colour}")
    file.write_bytes(data)
    forge(det, lambda record: record["pipeline"]["after"][0].update(type="nowhere"))
    with pytest.raises(IntegrityError, match=r"^det: .*'nowhere' isn't installed"):
        hasten.chain(f"{det}+crop+{colour}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("x"), InputError),
        (BeyondRange("x"), BeyondRange),
        (CandidateError("x"), CandidateError),
        (UnknownMember("x", "hasten.steps:x", "y"), IntegrityError),
    ],
)
def test_an_error_of_a_member_stays_of_its_kind(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^det: x") as told, named("det"):
        raise error
    assert type(told.value) is kind


def test_nothing_is_begun_after_the_deadline_or_a_cancellation(det: Path, colour: Path) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        stages: list[Stage] = []
        with pytest.raises(TimeoutError, match="the deadline of 1e-09 s passed"):
            chain.decide(squares(PLACES), deadline_s=1e-9, stages=stages)
        gone = threading.Event()
        gone.set()
        with pytest.raises(CancelledError):
            chain.decide(squares(PLACES), cancelled=gone, stages=stages)
        assert stages == []
        with pytest.raises(InputError, match="deadline_s=0"):
            chain.decide(squares(PLACES), deadline_s=0)
        assert told(chain.decide(squares(PLACES), deadline_s=60)) == PLACES


def test_stages_say_where_the_time_went(det: Path, colour: Path) -> None:
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        stages: list[Stage] = []
        chain.decide(png(squares(PLACES)), stages=stages)
    assert [(stage.name, stage.samples) for stage in stages] == [
        ("decode", 1),
        ("det", 1),
        ("crop", 3),
        ("colour", 3),
    ]
    assert all(stage.total_ns > 0 for stage in stages)


def refused(nodes: Any) -> str:
    with pytest.raises(InputError) as error:
        hasten.chain(nodes)
    return str(error.value)


def test_bundles_that_do_not_meet_are_refused_before_an_engine_is_opened(
    det: Path, colour: Path, bundle: Path, tmp_path: Path
) -> None:
    assert refused(f"{colour}+crop+{colour}") == (
        "crop needs boxes, but colour ends in top_k, which returns classes"
    )
    assert refused(f"{bundle}+crop+{colour}") == (
        "model: its bundle was made from arrays and has no pipeline, so it can't take a picture: make "
        "it with a pipeline"
    )
    raw = detector(tmp_path, name="raw", after=())
    assert refused(f"{raw}+crop+{colour}") == (
        "crop needs boxes, but raw returns its raw outputs: make its bundle with steps after the "
        "model"
    )
    assert refused(f"{det}+crop+{tmp_path / 'gone.hasten'}").startswith("gone: ")
    amounts = classifier(tmp_path, "amounts", after=[Quantity(names=COLOURS)])
    nodes = [
        Model("amounts", str(amounts)),
        When("unsure", "amounts", below=0.8),
        Model("colour", str(colour), "unsure"),
    ]
    assert refused(nodes) == (
        "unsure asks for a score, but amounts ends in quantity, whose decisions have none: ask for none, or "
        "end the pipeline in a step that gives one"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"least_score": 0.5},
        {"below": 0.8},
        {"labels": ("a",)},
        {"labels": ("a",), "least_score": 0.0},
    ],
)
@pytest.mark.parametrize(
    ("step", "scored"),
    [
        (TopK(), True),
        (TopK(least=0.5), True),
        (Threshold(), True),
        (MultiLabel(), True),
        (BOXES, True),
        (Entities(labels=("O", "B-PER")), True),
        (Ctc(alphabet=("a",)), False),
        (Mask(), False),
        (L2Normalize(), False),
        (Quantity(), False),
    ],
)
def test_a_condition_on_a_score_suits_a_step_that_gives_one(
    step: PostStep, settings: Any, scored: bool
) -> None:
    chain = Chain((Model("one", "one.hasten"), When("when", "one", **settings)))
    members = {"one": Member(Pipeline((), (step,)), ())}
    if scored or "labels" in settings:
        ChainPlan(chain, members)
        return
    with pytest.raises(InputError, match=r"^when asks for a score, but one ends in "):
        ChainPlan(chain, members)


def test_one_bundle_may_be_two_models_of_a_chain_and_is_opened_once(
    det: Path, colour: Path
) -> None:
    with hasten.chain(f"{det}+crop+{det}+crop+{colour}") as chain:
        assert list(chain.members) == ["det", "det_2", "colour"]
        assert chain.members["det"] is chain.members["det_2"]
        assert isinstance(chain, OpenChain)
        assert BOXES in chain.members["det"].manifest.pipeline.after  # type: ignore[union-attr]
