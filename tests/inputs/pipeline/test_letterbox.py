import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.records import from_record, to_record
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Step
from hasten.inputs.pipeline.letterbox import Letterbox

GRAY = 114


def test_a_wide_picture_gets_borders_above_and_below() -> None:
    picture = np.full((20, 40, 3), 7, np.uint8)
    framed, origin = Letterbox(20).traced(picture, Origin(20, 40))
    assert framed.shape == (20, 20, 3)
    assert (framed[:5] == GRAY).all()
    assert (framed[5:15] == 7).all()
    assert (framed[15:] == GRAY).all()
    assert origin == Origin(20, 40, (2.0, 2.0), (-10.0, 0.0))


def test_a_tall_picture_gets_borders_left_and_right() -> None:
    framed = Letterbox(20, fill=0)(np.full((40, 20, 3), 7, np.uint8))
    assert framed[0, :, 0].tolist() == [0] * 5 + [7] * 10 + [0] * 5


def test_an_odd_border_is_wider_below_and_to_the_right() -> None:
    framed = Letterbox((5, 8))(np.full((4, 5, 3), 7, np.uint8))
    assert framed[0, :, 0].tolist() == [GRAY] + [7] * 6 + [GRAY]
    framed = Letterbox((4, 9))(np.full((4, 4, 3), 7, np.uint8))
    assert framed[0, :, 0].tolist() == [GRAY] * 2 + [7] * 4 + [GRAY] * 3


def test_a_small_picture_grows_only_where_it_may() -> None:
    picture = np.full((4, 6, 3), 7, np.uint8)
    assert (Letterbox(12)(picture)[2:10] == 7).all()
    framed, origin = Letterbox(12, enlarge=False).traced(picture, Origin(4, 6))
    assert (framed[4:8, 3:9] == 7).all()
    assert (framed != GRAY).sum() == 4 * 6 * 3
    assert origin == Origin(4, 6, (1.0, 1.0), (-4.0, -3.0))


def test_a_picture_may_lie_in_the_upper_left_corner() -> None:
    framed, origin = Letterbox(20, center=False).traced(
        np.full((20, 40, 3), 7, np.uint8), Origin(20, 40)
    )
    assert (framed[:10] == 7).all()
    assert origin.offset == (0.0, 0.0)


@given(
    st.tuples(st.integers(16, 90), st.integers(16, 90)),
    st.tuples(st.integers(16, 90), st.integers(16, 90)),
    st.booleans(),
)
def test_a_marked_block_is_told_where_it_is_in_the_source(
    old: tuple[int, int], size: tuple[int, int], center: bool
) -> None:
    picture = np.zeros((*old, 3), np.uint8)
    top, left = old[0] // 4, old[1] // 3
    picture[top : top + 8, left : left + 8] = 255
    step = Letterbox(size, fill=0, interpolation="box", center=center)
    framed, origin = step.traced(picture, Origin(*old))
    for axis, start in ((0, top), (1, left)):
        line = np.flatnonzero((framed[..., 0] > 0).any(axis=1 - axis))
        ends = np.array([line[0], line[-1] + 1]) * origin.scale[axis] + origin.offset[axis]
        # An edge lies within the pixel of the frame that it falls into.
        assert ends == pytest.approx([start, start + 8], abs=max(1.0, origin.scale[axis]))


def test_a_very_long_picture_keeps_a_line_of_pixels() -> None:
    assert Letterbox(8)(np.zeros((1, 1000, 3), np.uint8)).shape == (8, 8, 3)


def test_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match=r"letterbox\.size=0: give sides of at least 1 pixel"):
        Letterbox(0)
    with pytest.raises(InputError) as error:
        Letterbox(8, fill=256)
    assert str(error.value) == "letterbox.fill=256: give a number from 0 to 255"


def test_a_letterbox_comes_back_from_its_record() -> None:
    step = Letterbox((8, 16), 0, "bicubic", False, False)
    assert from_record(Step, {**to_record(step), "size": [8, 16]}) == step
