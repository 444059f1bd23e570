from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.inputs.pipeline.base import PostStep, Step
from hasten.inputs.pipeline.image import Decode
from hasten.testing.step_tests import StepTests, misspelled


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class TestDecode(StepTests):
    step = Decode()
    sample = png()


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
