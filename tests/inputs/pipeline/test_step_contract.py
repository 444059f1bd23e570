from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.inputs.pipeline.base import EitherOr, Origin, PostStep, Step
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.threshold import Threshold
from hasten.testing.step_tests import PostStepTests, StepTests, misspelled


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class TestDecode(StepTests):
    step = Decode()
    sample = png()


class TestThreshold(PostStepTests):
    step = Threshold(0.3, labels=("no", "yes"))


class TestThresholdBelowZero(PostStepTests):
    step = Threshold(-1.5)


@pytest.mark.parametrize("family", [Step, PostStep])
def test_no_step_of_hastens_own_has_a_name_that_is_nearly_one_of_the_contract(family: Any) -> None:
    for kind in family.members().values():
        assert misspelled(object.__new__(kind)) == {}, kind


@dataclass(frozen=True)
class Unpack(Step):
    """A step whose author misspelled the bound on its memory."""

    memory_per_bytes: int = 2048

    def __call__(self, value: bytes) -> bytes:
        return value


class OfUnpack(StepTests):
    step = Unpack()
    sample = b"sent"


def test_the_suite_refuses_a_step_whose_bound_is_misspelled() -> None:
    with pytest.raises(AssertionError, match="memory_per_byte"):
        OfUnpack().test_no_name_of_the_contract_is_misspelled()
    with pytest.raises(AssertionError, match="the work grows with the bytes alone"):
        OfUnpack().test_the_memory_for_what_strangers_send_is_bounded()


@dataclass(frozen=True)
class Strict(Threshold):
    """A step that states other decisions than it takes: one at the threshold itself is negative."""

    def either_or(self, dtype: np.dtype[Any]) -> EitherOr | None:
        return Threshold(self.threshold).either_or(dtype)

    def __call__(self, value: Any, origin: Origin) -> dict[str, Any]:
        decision = super().__call__(value, origin)
        return {**decision, "positive": decision["score"] > self.threshold}


class OfStrict(PostStepTests):
    step = Strict(0.5)


def test_the_suite_refuses_a_step_that_states_other_decisions_than_it_takes() -> None:
    OfStrict().test_both_decisions_by_one_score_are_those_that_it_takes("float64")  # it states none
    with pytest.raises(AssertionError):
        OfStrict().test_both_decisions_by_one_score_are_those_that_it_takes("float32")
