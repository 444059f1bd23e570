"""States by their names, their checks and their starts; and sessions that answer whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import recurrent

from hasten.core.sequences import (
    LENGTHS,
    Sequences,
    check_states,
    likely_states,
    pairs_of,
    settled_states,
    start_of,
)
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.sequences import SequenceSession
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load

X = TensorSpec("x", "float32", ("batch", 4))


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


@pytest.mark.parametrize(
    "given",
    [{"h": "hn", "c": "cn"}, "h=hn,c=cn", ["h=hn", " c = cn "], (("h", "hn"), ("c", "cn"))],
)
def test_states_are_given_in_several_forms(given: Any) -> None:
    assert pairs_of(given) == (("h", "hn"), ("c", "cn"))


def test_a_state_without_its_output_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        pairs_of("h")
    assert str(caught.value) == (
        "a state is the input that takes it and the output that returns the next one, such as "
        "states=\"h=h_out\": got 'h'"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("state", "stateN"),
        ("h_in", "h_out"),
        ("h", "hn"),
        ("c0", "cn"),
        ("past_key", "present_key"),
        ("hidden", "new_hidden"),
        ("prev_state", "next_state"),
        ("h_prev", "h_next"),
        ("h", "h_out"),
    ],
)
def test_pairs_that_the_names_show_are_found(one: str, other: str) -> None:
    inputs, outputs = [X, spec(one, "batch", 8)], [spec("y", "batch", 8), spec(other, "batch", 8)]
    assert likely_states(inputs, outputs) == ((one, other),)


def test_names_that_could_be_several_pairs_or_of_another_shape_are_none() -> None:
    assert likely_states([spec("h", 8)], [spec("hn", 8), spec("h_out", 8)]) == ()
    assert likely_states([spec("h", 8)], [spec("hn", 9)]) == ()
    assert likely_states([spec("h", 8)], [spec("hn", 8, dtype="float64")]) == ()
    assert likely_states([spec("h_in", 8), spec("h", 8)], [spec("h_out", 8)]) == ()


def test_very_many_states_are_paired() -> None:
    # So many that comparing each input with each output would take hours.
    pairs = tuple((f"s_{number}_of_in", f"s_{number}_of_out") for number in range(20_000))
    taking, giving = zip(*pairs, strict=True)
    assert (
        likely_states([spec(one, 8) for one in taking], [spec(one, 8) for one in giving]) == pairs
    )


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("g=hn", "the model has no input 'g' to carry a state; it has x, h"),
        ("h=gn", "the model has no output 'gn' to carry a state; it has y, hn, short, wide"),
        ("h=hn,h=y", "the input 'h' carries two states: give each one once"),
        (
            "h=short",
            "the input and the output of the state h=short differ: the model takes h: "
            "float32[batch, 8] and returns "
            "short: float32[batch, 7]",
        ),
        (
            "h=wide",
            "the input and the output of the state h=wide differ: the model takes h: "
            "float32[batch, 8] and returns "
            "wide: float64[batch, 8]",
        ),
        (
            "h=hn,x=y",
            "every input of the model is a state, so a step has no input left to take: got x, h",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(states: str, said: str) -> None:
    outputs = [
        spec("y", "batch", 4),
        spec("hn", "batch", 8),
        spec("short", "batch", 7),
        spec("wide", "batch", 8, dtype="float64"),
    ]
    with pytest.raises(InputError) as caught:
        check_states(pairs_of(states), [X, spec("h", "batch", 8)], outputs)
    assert str(caught.value) == said


def test_open_sizes_of_a_state_are_those_of_the_steps_or_1() -> None:
    inputs = [spec("x", "batch", "wide"), spec("h", 2, "batch", "?", "wide", 8)]
    (found,) = settled_states((("h", "hn"),), inputs, [spec("x", 1, 4)]).values()
    assert found.sizes == (2, 1, 1, 4, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"g": np.zeros(8)}, "the model has no state 'g'; it has h"),
        (
            {"h": np.zeros((1, 8))},
            "the start of the state 'h' is float32[1, 8]; got float64[1, 8]",
        ),
        (
            {"h": np.zeros((1, 7), np.float32)},
            "the start of the state 'h' is float32[1, 8]; got float32[1, 7]",
        ),
        ({"h": np.full(8, np.nan, np.float32)}, "the start of the state 'h' has NaN or Inf"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(given: Tensors, said: str) -> None:
    with pytest.raises(InputError) as caught:
        start_of([spec("h", 1, 8)], given)
    assert str(caught.value) == said


def answered(path: Path, sequences: Sequences, inputs: Tensors) -> dict[str, Array]:
    model = load(path).settled_by(
        {"x": np.zeros(recurrent.WIDE, np.float32), "h": np.zeros(recurrent.HIDDEN, np.float32)}
    )
    folder = path.parent / "built"
    folder.mkdir(exist_ok=True)
    engine = OnnxRuntime()
    artifact = engine.build(model, Target.host(), folder)
    with engine.open(artifact, Target.host()) as session:
        return SequenceSession(session, sequences, artifact.request).run(inputs)


def test_a_sequence_is_answered_as_by_a_loop_bit_for_bit(tmp_path: Path) -> None:
    path, steps = recurrent.gru(tmp_path), recurrent.sequences(1, 9)[0]
    got = answered(path, Sequences((("h", "h_out"),)), {"x": steps})
    assert list(got) == ["scores"]
    np.testing.assert_array_equal(got["scores"][0], recurrent.unrolled(path, steps)[0])


def test_a_sequence_begins_with_the_given_state(tmp_path: Path) -> None:
    path, steps = recurrent.gru(tmp_path), recurrent.sequences(1, 3)[0]
    start = np.linspace(-1, 1, recurrent.HIDDEN, dtype=np.float32)
    got = answered(path, Sequences((("h", "h_out"),)), {"x": steps, "h": start})
    want = recurrent.unrolled(path, steps, start[np.newaxis])[0]
    np.testing.assert_array_equal(got["scores"][0], want)


def test_steps_past_the_length_are_padding(tmp_path: Path) -> None:
    path, steps = recurrent.gru(tmp_path), recurrent.sequences(1, 5)[0]
    sequences = Sequences((("h", "h_out"),), lengths=True)
    got = answered(path, sequences, {"x": steps, LENGTHS: np.array(3)})
    assert got["scores"].shape == (1, 5, recurrent.CLASSES)
    np.testing.assert_array_equal(got["scores"][0, :3], recurrent.unrolled(path, steps[:3])[0])
    assert not got["scores"][0, 3:].any()
    assert got[LENGTHS].tolist() == [3]


class _Broken(Session):
    """Gives a state of another form than it takes."""

    batch_sizes = None

    def __init__(self, state: Array) -> None:
        self.inputs, self.outputs = (X, spec("h", 1, 8)), (spec("y", 1), spec("hn", 1, 8))
        self._state = state

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return {"y": np.zeros(1, np.float32), "hn": self._state}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            np.zeros((1, 9), np.float32),
            "the model takes the state h: float32[1, 8], but a step returned float32[1, 9] as hn",
        ),
        (
            np.zeros((1, 8), np.float16),
            "the model takes the state h: float32[1, 8], but a step returned float16[1, 8] as hn",
        ),
        (np.full((1, 8), np.inf, np.float32), "the state 'h' has NaN or Inf within 2 steps"),
    ],
)
def test_a_state_that_does_not_fit_fails_the_candidate(state: Array, said: str) -> None:
    session = SequenceSession(
        _Broken(state), Sequences((("h", "hn"),)), (spec("x", 1, 4), spec("h", 1, 8))
    )
    with pytest.raises(CandidateError) as caught:
        session.run({"x": np.zeros((2, 4), np.float32)})
    assert str(caught.value) == said
