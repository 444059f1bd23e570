import numpy as np
import pytest
from hasten_numpy.steps import Features, Grade

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.testing.step_tests import PostStepTests, StepTests

GRADES = Pipeline((Features(),), (Grade(("poor", "fair", "good")),))


class TestFeatures(StepTests):
    step = Features()
    sample = bytes(8)


class TestGrade(PostStepTests):
    step = Grade(("poor", "fair", "good"))


def test_bytes_become_numbers_and_scores_become_a_grade() -> None:
    sample, origin = GRADES.prepared(np.float32([0.5, -2]).tobytes())
    assert (sample.dtype, sample.tolist()) == (np.float32, [0.5, -2])
    decision = GRADES.decided({"y": np.float32([1, 3, 2])}, origin)
    assert decision == {"grade": "fair", "score": 3.0}


def test_a_record_that_ends_within_a_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"^features are numbers of 4 bytes each; got 5 bytes$"):
        GRADES(bytes(5))


def test_a_model_with_another_number_of_grades_is_refused_before_a_run() -> None:
    GRADES.check([TensorSpec("y", "float32", ("batch", 3))])
    with pytest.raises(InputError, match=r"^grade needs a score of each grade"):
        GRADES.check([TensorSpec("y", "float32", ("batch", 4))])
