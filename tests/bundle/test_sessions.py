"""Sessions of a bundle that carry its states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import recurrent
from tests.support.bundles import forge
from tests.support.servers import ONE_THREAD, bundle_of
from tests.support.waiting import PATIENCE_S

from hasten.bundle import Loaded, load, read
from hasten.bundle.states import StateSession
from hasten.core.sequences import Sequences
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import CandidateError, InputError, IntegrityError

STEPS = recurrent.sequences(1, 8)[0]
ENGINES = {"onnxruntime": ONE_THREAD, "compiled": CompiledC()}
Unrolled = Callable[..., tuple[Array, Array]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recurrent.gru(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def bundle(model: Path, engine: Engine) -> Path:
    return bundle_of(model.parent, model, engine=engine, sequences=Sequences((("h", "h_out"),)))


@pytest.fixture
def unrolled(model: Path, engine: Engine) -> Unrolled:
    """The engine's own loop over steps."""
    return partial(recurrent.unrolled, model, engine=engine)


@pytest.fixture
def loaded(bundle: Path) -> Iterator[Loaded]:
    with load(bundle) as opened:
        yield opened


def test_a_session_answers_as_a_loop_does_bit_for_bit(loaded: Loaded, unrolled: Unrolled) -> None:
    want, state = unrolled(STEPS)
    session = loaded.session()
    got = [session(x[np.newaxis]) for x in STEPS]
    assert [list(answer) for answer in got] == [["scores"]] * 8
    np.testing.assert_array_equal([answer["scores"][0] for answer in got], want)
    np.testing.assert_array_equal(session.states["h"], state)
    assert session.steps == 8


def test_engines_carry_a_state_alike(loaded: Loaded, model: Path) -> None:
    session = loaded.session()
    got = [session(x[np.newaxis])["scores"][0] for x in STEPS]
    want, state = recurrent.unrolled(model, STEPS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.states["h"], state, rtol=1e-5, atol=1e-6)


def test_a_reset_in_the_middle_begins_anew(loaded: Loaded, unrolled: Unrolled) -> None:
    start = np.full((1, recurrent.HIDDEN), 0.25, np.float32)
    session = loaded.session({"h": start})
    for x in STEPS[:3]:
        session(x=x[np.newaxis])
    session.reset()
    got = [session({"x": x[np.newaxis]})["scores"][0] for x in STEPS]
    np.testing.assert_array_equal(got, unrolled(STEPS, start)[0])
    session.reset({"h": np.zeros_like(start)})
    got = [session(x[np.newaxis])["scores"][0] for x in STEPS]
    np.testing.assert_array_equal(got, unrolled(STEPS)[0])


def test_sessions_side_by_side_do_not_mix(loaded: Loaded, unrolled: Unrolled) -> None:
    others = recurrent.sequences(3, 8, seed=2)
    sessions = [loaded.session() for _ in others]
    got: list[list[Any]] = [[], [], []]
    for t in range(8):
        for number, session in enumerate(sessions):
            got[number].append(session(others[number, t][np.newaxis])["scores"][0])
    for number in range(3):
        np.testing.assert_array_equal(got[number], unrolled(others[number])[0])


def refusal(error: type[Exception], *arrays: Any, session: Any, **named: Any) -> str:
    with pytest.raises(error) as caught:
        session(*arrays, **named)
    return str(caught.value)


def test_what_is_no_step_is_refused(loaded: Loaded) -> None:
    session = loaded.session()
    x = STEPS[:1]
    assert refusal(InputError, session=session) == "the model takes the inputs x; got none"
    assert refusal(InputError, x, x, session=session) == "a step takes x; got 2 inputs"
    assert refusal(InputError, x, x=x, session=session) == (
        "input 'x' is given twice, by position and by name"
    )
    assert refusal(InputError, x[:, :3], session=session) == (
        "input 'x': the model takes x: float32[batch, 12]; got float32[1, 3]"
    )
    assert refusal(InputError, x, h=np.zeros((1, 16), np.float32), session=session) == (
        "the session carries the state 'h' itself: leave that input out, or set the state with "
        "reset({'h': ...})"
    )
    assert session.steps == 0


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_step_that_would_ruin_the_state_is_refused_and_the_state_stays(
    loaded: Loaded, before: int
) -> None:
    session, twin = loaded.session(), loaded.session()
    for x in STEPS[:before]:
        session(x[np.newaxis])
        twin(x[np.newaxis])
    kept = session.states["h"]
    bad = np.full((1, recurrent.WIDE), np.nan, np.float32)
    assert refusal(CandidateError, bad, session=session) == (
        f"the state 'h' would have NaN or Inf after step {before}: the state before it is kept; "
        "check that step's input"
    )
    np.testing.assert_array_equal(session.states["h"], kept)
    assert session.steps == before
    for x in STEPS[before : before + 2]:
        np.testing.assert_array_equal(
            session(x[np.newaxis])["scores"], twin(x[np.newaxis])["scores"]
        )


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_step_that_fails_keeps_the_state(loaded: Loaded, before: int) -> None:
    session, twin = loaded.session(), loaded.session()
    for x in STEPS[:before]:
        session(x[np.newaxis])
        twin(x[np.newaxis])
    with pytest.raises((CandidateError, InputError)):
        session(STEPS[:2])  # two rows don't fit the state of one
    assert session.steps == before
    for x in STEPS[before:]:
        np.testing.assert_array_equal(
            session(x[np.newaxis])["scores"], twin(x[np.newaxis])["scores"]
        )


def test_steps_in_each_form_continue_one_sequence(loaded: Loaded, unrolled: Unrolled) -> None:
    session = loaded.session()
    wide = np.repeat(STEPS, 2, axis=1)[:, ::2]  # not contiguous
    forms: list[Callable[[int], dict[str, Array]]] = [
        lambda t: session(STEPS[t : t + 1]),
        lambda t: session({"x": STEPS[t : t + 1]}),
        lambda t: session(x=STEPS[t : t + 1]),
        lambda t: session(wide[t : t + 1]),
        lambda t: session(list(STEPS[t : t + 1])),
    ]
    got = [forms[t % 5](t)["scores"][0] for t in range(8)]
    np.testing.assert_array_equal(got, unrolled(STEPS)[0])


def test_states_go_from_step_to_step_without_a_request_of_their_own(
    loaded: Loaded, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run = [], loaded.run

    def noted(tensors: Tensors) -> dict[str, Array]:
        asked.append(1)
        return run(tensors)

    monkeypatch.setattr(loaded, "run", noted)
    session = loaded.session()
    for x in STEPS:
        session(x[np.newaxis])
    session.reset()
    session(STEPS[:1])
    assert len(asked) == (1 if isinstance(engine, CompiledC) else 9)


def test_a_session_of_a_closed_bundle_is_refused(bundle: Path) -> None:
    with load(bundle) as loaded:
        fresh, used = loaded.session(), loaded.session()
        for x in STEPS[:3]:
            used(x[np.newaxis])
    for session in (fresh, used):
        assert refusal(CandidateError, STEPS[:1], session=session) == (
            "the bundle is closed: load it again"
        )
    assert used.steps == 3


def test_what_a_caller_does_to_an_answer_changes_no_state() -> None:
    class Adds:
        """Model whose only output is its state."""

        inputs = (TensorSpec("x", "float32", (1,)), TensorSpec("h", "float32", (1,)))
        outputs = (TensorSpec("h_out", "float32", (1,)),)
        request = inputs

        def run(self, tensors: Tensors) -> dict[str, Array]:
            return {"h_out": tensors["x"] + tensors["h"]}

    session = StateSession(Adds(), Sequences((("h", "h_out"),)), {})
    for _ in range(2):
        answer = session(np.ones(1, np.float32))
        answer["h_out"][...] = 100
    assert session.states["h"] == 2


class Slow:
    """Input that keeps the thread that reads it within its step."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def __array__(self, *_: Any, **__: Any) -> Array:
        self.inside.set()
        self.go.wait(PATIENCE_S)
        return np.array(STEPS[:1])


@pytest.mark.parametrize("before", [0, 2])
def test_two_threads_in_one_session_are_told_so(loaded: Loaded, before: int) -> None:
    session, slow = loaded.session(), Slow()
    for x in STEPS[:before]:
        session(x[np.newaxis])
    thread = threading.Thread(target=session, args=(slow,))
    thread.start()
    assert slow.inside.wait(PATIENCE_S)
    said = refusal(InputError, STEPS[:1], session=session)
    with pytest.raises(InputError) as caught:
        session.reset()
    slow.go.set()
    thread.join()
    assert said == (
        "another thread is running a step of this session: the steps of a sequence run one after "
        "another; give each thread its own session"
    )
    assert (
        str(caught.value)
        == "another thread is running a step of this session: reset the session when that step has ended"
    )
    assert session.steps == before + 1


def test_what_interrupts_a_step_reads_the_states_and_is_refused_a_step(loaded: Loaded) -> None:
    """As a signal handler does, which runs in the thread that it interrupts."""
    session, read, said = loaded.session(), list[dict[str, Array]](), list[str]()

    class Interrupts:
        def __array__(self, *_: Any, **__: Any) -> Array:
            read.append(session.states)
            said.append(refusal(InputError, STEPS[:1], session=session))
            with pytest.raises(InputError):
                session.reset()
            return np.array(STEPS[:1])

    thread = threading.Thread(target=session, args=(Interrupts(),), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not read[0]["h"].any()
    assert said[0].startswith("another thread is running a step of this session: ")
    assert session.steps == 1


def test_states_that_are_read_during_steps_are_those_of_one_step() -> None:
    class Counts:
        """Model that adds x to two states; a step by a bound call writes one, then the other."""

        inputs = tuple(TensorSpec(name, "int64", (1_000_000,)) for name in ("x", "a", "b"))
        outputs = tuple(TensorSpec(name, "int64", (1_000_000,)) for name in ("a_out", "b_out"))
        request = inputs

        def run(self, tensors: Tensors) -> dict[str, Array]:
            return {f"{name}_out": tensors["x"] + tensors[name] for name in "ab"}

    def bind(inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        def call() -> None:
            for name in "ab":
                outputs[f"{name}_out"][...] = inputs["x"] + inputs[name]

        return call

    states = Sequences((("a", "a_out"), ("b", "b_out")))
    session = StateSession(Counts(), states, {}, bind)
    done, one = threading.Event(), np.ones(1_000_000, np.int64)

    def steps() -> None:
        while not done.is_set():
            session(one)
            time.sleep(0.001)  # else it has the session again before a reader gets it

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        for _ in range(60):
            read = session.states.values()
            assert len({number for array in read for number in (array.min(), array.max())}) == 1
    finally:
        done.set()
        thread.join()
    assert (session.states["a"] == session.steps).all()


def test_a_bundle_without_states_has_no_sessions(model: Path) -> None:
    path = bundle_of(model.parent, model, "plain")
    with load(path) as loaded, pytest.raises(InputError) as caught:
        loaded.session()
    assert str(caught.value) == (
        f"{path} was made without states=: it answers each request by itself"
    )


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        (
            {"states": [["g", "h_out"]], "scored": "all", "lengths": False},
            "the model has no input 'g' to carry a state; it has x, h",
        ),
        (
            {"states": [], "scored": "all", "lengths": False},
            "it states sequences without a state",
        ),
        (
            {"states": [["h", "scores"]], "scored": "all", "lengths": False},
            "the input and the output of the state h=scores differ: the model takes h: "
            "float32[batch, 16] and returns scores: "
            "float32[batch, 4]",
        ),
        (
            {"states": [["h", "h_out"]], "scored": "some", "lengths": False},
            "a Manifest record can't be read: Invalid enum value 'some' - at `$.sequences.scored`",
        ),
    ],
)
def test_states_that_do_not_fit_make_a_damaged_bundle(
    model: Path, sequences: dict[str, Any], said: str
) -> None:
    path = bundle_of(model.parent, model, "forged", sequences=Sequences((("h", "h_out"),)))
    forge(path, lambda record: record.update(sequences=sequences))
    with pytest.raises(IntegrityError) as caught:
        read(path)
    assert str(caught.value) in (f"{path}: the manifest is damaged: {said}", said)
