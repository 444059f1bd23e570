"""Which decisions of a chain count as those of its exact models, whatever the last step is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.support import chains

from hasten.errors import InputError
from hasten.evaluation.decisions import Comparison
from hasten.inputs.chains import Chain
from hasten.inputs.chains.nodes import Crop, Model
from hasten.inputs.pipeline.base import DECISION, Origin, Pipeline, PostStep, Tokenized
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.ctc import Ctc
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.mask import Mask
from hasten.inputs.pipeline.multi_label import MultiLabel
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.pipeline.vectors import L2Normalize, Quantity


def box(
    x: float,
    what: str = "plate",
    text: Any = {"text": "AB 1", "confidence": 0.9, "weakest": 0.8},  # noqa: B006
    size: float = 10,
    score: float = 0.9,
) -> dict[str, Any]:
    return {"box": [x, 0, x + size, 10], "class": 0, "label": what, "score": score, "text": text}


CAT = [{"class": 1, "label": "cat", "score": 0.6}, {"class": 2, "label": "dog", "score": 0.4}]
DOG = CAT[::-1]
WORDS = Tokenized("Bo ran", np.arange(2, dtype=np.int32), np.array([[0, 2], [3, 6]], np.int32))
HERE = Origin(text=WORDS)
READERS = {"text": Ctc(("A",)), "kind": TopK(2)}


def agrees(mine: Any, exact: Any, key: str = "text", reader: PostStep = READERS["text"]) -> bool:
    """Compare decisions of a detector, whose boxes have what a reader read as one key."""
    chain = Chain((Model("det", "det"), Crop("crop", "det"), Model(key, key, "crop")))
    pipelines = {"det": Pipeline((), (chains.BOXES,)), key: Pipeline((), (reader,))}
    comparison = Comparison(chain, pipelines)
    there, back = comparison.agrees(mine, exact), comparison.agrees(exact, mine)
    assert there is back
    return there


def text(read: str) -> dict[str, Any]:
    return {"text": read, "confidence": 0.5, "weakest": 0.1}


@pytest.mark.parametrize(
    ("mine", "exact", "same"),
    [
        ([box(0), box(50)], [box(50), box(0)], True),
        ([box(0, score=0.3)], [box(2)], True),
        ([box(0)], [box(4)], False),  # IoU 6 / 14
        ([box(0)], [box(0), box(50)], False),
        ([box(0, "car")], [box(0)], False),
        ([box(0, text=text("AB 7"))], [box(0)], False),
        ([box(0, text=None)], [box(0)], False),
        ([box(0, text=None)], [box(0, text=None)], True),
        ([box(0), box(1, text=text("CD"))], [box(1, text=text("CD")), box(0)], True),
        ([box(0), box(0)], [box(0), box(50)], False),
        ([], [], True),
        ([], [box(0)], False),
    ],
)
def test_boxes_agree_where_whoever_acts_on_them_does_the_same(
    mine: Any, exact: Any, same: bool
) -> None:
    assert agrees(mine, exact) is same


def test_what_was_read_in_a_box_is_compared_by_the_readers_own_step() -> None:
    """The first class of `top_k` decides, but each of `multi_label` does."""
    one, other = ([box(0, text=found)] for found in (CAT, CAT[:1]))
    assert agrees(one, other, reader=TopK(2))
    assert not agrees(one, other, reader=MultiLabel())
    assert not agrees(one, [box(0, text=DOG)], reader=TopK(2))


def test_decisions_of_several_models_about_the_picture_must_all_agree() -> None:
    chain = Chain((Model("kind", "kind"), Model("read", "read")))
    pipelines = {"kind": Pipeline((), (TopK(2),)), "read": Pipeline((), (Ctc(("A",)),))}
    comparison = Comparison(chain, pipelines)
    exact = {"kind": CAT, "read": None}
    assert comparison.agrees({"kind": CAT, "read": None}, exact)
    assert not comparison.agrees({"kind": CAT, "read": text("x")}, exact)
    assert not comparison.agrees({"kind": DOG, "read": None}, exact)


def scores(*numbers: float) -> dict[str, Any]:
    """A model's output."""
    return {"y": np.array(numbers, np.float32)}


PAINTED = np.zeros((10, 10), np.float32)
PAINTED[:2, :5] = 1


def painted(*changes: tuple[int, int, int]) -> dict[str, Any]:
    """The classes of 100 pixels, 10 of class 1, after some of them were changed."""
    picture = PAINTED.copy()
    for row, column, kind in changes:
        picture[row, column] = kind
    return {"y": picture}


FIVE = [(0, x, 0) for x in range(5)]
READ = Ctc(("A", "B"), activation="none")
A, B, UNSURE = [[0.1, 0.9, 0.0]], [[0.2, 0.1, 0.7]], [[0.3, 0.4, 0.3]]
WHO = Entities(("O", "PERSON", "PLACE"))


def tagged(*rows: list[float]) -> dict[str, Any]:
    """A model's scores of each word's tags."""
    return {"y": np.array(rows, np.float32)}


CASES: dict[str, list[tuple[PostStep, dict[str, Any], dict[str, Any], bool]]] = {
    "top_k": [
        (TopK(3, softmax=False), scores(1, 2, 3), scores(2, 1, 9), True),
        (TopK(3, softmax=False), scores(1, 2, 3), scores(1, 3, 2), False),
        (TopK(least=0.8, softmax=False), scores(0.1, 0.9), scores(0.2, 0.8), True),
        (TopK(least=0.8, softmax=False), scores(0.1, 0.9), scores(0.3, 0.7), False),
        (TopK(least=0.8, softmax=False), scores(0.9, 0.1), scores(0.1, 0.9), False),
    ],
    "threshold": [
        (Threshold(0.5), scores(0.6), scores(0.9), True),
        (Threshold(0.5), scores(0.4), scores(0.5), False),
        (Threshold(0.5, margin=0.1), scores(0.45), scores(0.55), True),
        (Threshold(0.5, margin=0.1), scores(0.55), scores(0.65), False),
    ],
    "multi_label": [
        (MultiLabel(sigmoid=False), scores(0.9, 0.6, 0), scores(0.6, 0.9, 0), True),
        (MultiLabel(sigmoid=False), scores(0.9, 0.6, 0), scores(0.9, 0, 0), False),
        (MultiLabel(sigmoid=False), scores(0, 0, 0), scores(0, 0, 0), True),
        (MultiLabel(sigmoid=False), scores(0, 0, 0), scores(0.9, 0, 0), False),
    ],
    "ctc": [
        (READ, {"y": np.array(A)}, {"y": np.array(UNSURE)}, True),
        (READ, {"y": np.array(A)}, {"y": np.array(B)}, False),
        (replace(READ, least=0.5), {"y": np.array(A)}, {"y": np.array(UNSURE)}, False),
        (replace(READ, least=0.95), {"y": np.array(A)}, {"y": np.array(UNSURE)}, True),
        (replace(READ, least=0.95), {"y": np.array(A)}, {"y": np.array(B)}, False),
    ],
    "entities": [
        (WHO, tagged([0, 5, 4], [9, 1, 1]), tagged([0, 9, 1], [5, 1, 1]), True),
        (WHO, tagged([0, 5, 4], [9, 1, 1]), tagged([0, 4, 5], [9, 1, 1]), False),
        (WHO, tagged([0, 5, 4], [9, 1, 1]), tagged([9, 5, 4], [9, 1, 1]), False),
        (WHO, tagged([9, 0, 0], [9, 0, 0]), tagged([5, 0, 0], [1, 0, 0]), True),
    ],
    "l2_normalize": [
        (L2Normalize(), scores(3, 4, 0.01), scores(30, 40, -0.1), True),
        (L2Normalize(), scores(1, 0), scores(1, 0.049), True),
        (L2Normalize(), scores(1, 0), scores(1, 0.051), False),
    ],
    "quantity": [
        (Quantity(unit="years"), scores(41), scores(40), True),
        (Quantity(unit="years"), scores(45), scores(40), False),
        (Quantity(names=("x", "y")), scores(1, 100), scores(1, 104), True),
        (Quantity(names=("x", "y")), scores(1, 100), scores(2, 100), False),
    ],
    "mask": [
        (Mask(decided=True), painted(), painted((0, 0, 0), (9, 9, 1)), True),
        (Mask(decided=True), painted(), painted(*FIVE), True),
        # Six of 100 pixels are more than 5%. Five of ten pixels are half of class 1, four of nine aren't.
        (Mask(decided=True), painted(), painted(*((9, x, 1) for x in range(6))), False),
        (Mask(decided=True), painted((0, 0, 0)), painted(*FIVE), True),
        (Mask(decided=True), painted((1, 4, 0)), painted((1, 4, 0), *FIVE), False),
        (Mask(decided=True), painted((5, 5, 20)), painted((5, 5, 21)), False),
        (Mask(decided=True), painted((5, 5, 20)), painted(), False),
        (Mask(decided=True), painted((5, 5, 20)), painted((5, 5, 20), (0, 0, 0)), True),
    ],
}


@pytest.mark.parametrize(
    ("step", "mine", "exact", "same"), [case for cases in CASES.values() for case in cases]
)
def test_each_last_step_says_which_decisions_agree(
    step: PostStep, mine: dict[str, Any], exact: dict[str, Any], same: bool
) -> None:
    one, other = step(mine, HERE), step(exact, HERE)
    assert step.agrees(one, other) is same
    assert step.agrees(other, one) is same


def test_no_last_step_is_left_out() -> None:
    """Steps that end in boxes are compared box by box, those that end in anything else above."""
    steps = {name: PostStep.member(name) for name in PostStep.registry}
    last = {name for name, step in steps.items() if step.gives == DECISION}
    assert last - {name for name in last if steps[name].decides == "boxes"} == CASES.keys()


def test_models_without_steps_after_them_are_refused() -> None:
    with pytest.raises(InputError) as error:
        Comparison(Chain((Model("det", "det"),)), {"det": Pipeline(())})
    assert str(error.value) == (
        "det returns its raw outputs, and arrays can't be compared as decisions: make its bundle with "
        "steps after the model"
    )
