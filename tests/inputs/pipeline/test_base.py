"""What a bundle can keep of a pipeline."""

from dataclasses import dataclass
from typing import Any

import pytest

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, Step, check_steps
from hasten.inputs.pipeline.image import Decode, Normalize


@dataclass(frozen=True)
class Mine(Step):
    """A step of the user's own."""

    def __call__(self, value: Any) -> Any:
        return value


def test_a_step_of_the_users_own_is_refused_before_any_work() -> None:
    check_steps(None)
    check_steps(Pipeline((Decode(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))))
    with pytest.raises(InputError) as error:
        check_steps(Pipeline((Decode(), Mine())))
    assert str(error.value) == (
        f"a bundle can't store the step {__name__}:Mine, only decode, resize, center_crop, "
        "normalize, to_layout: preprocess the data in your own code, and give arrays"
    )
