"""Session of a loaded bundle that carries the model's states from step to step."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from hasten.core.forks import after_forks
from hasten.core.sequences import Sequences, start_of
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.core.words import amount
from hasten.engines.sequences import misfit
from hasten.errors import CandidateError, InputError

Bind: TypeAlias = Callable[[Tensors, Tensors], Callable[[], None] | None]
"""Function that binds a call to arrays by input and by output name; None if such a request isn't one call."""

_FLOAT32 = np.dtype(np.float32)


class Answering(Protocol):
    """A loaded model that answers steps, with the states among their inputs."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def request(self) -> tuple[TensorSpec, ...]: ...

    def run(self, tensors: Tensors) -> dict[str, Array]: ...


class Carrier:
    """States of one sequence, for the code that runs its steps.

    Attributes:
        states: States that the next step begins with, by the input's name.
        steps: Number of steps since the start.

    Args:
        model: Loaded model.
        sequences: States that it carries.
    """

    def __init__(self, model: Answering, sequences: Sequences) -> None:
        self.sequences = sequences
        names = set(sequences.inputs)
        self.specs = {spec.name: spec for spec in model.request if spec.name in names}
        self.inputs = tuple(spec for spec in model.inputs if spec.name not in names)
        self.outputs = sequences.answers(model.outputs)
        self._answers = tuple(spec.name for spec in self.outputs)
        self._given_out = frozenset(self._answers)
        self._carried = tuple(
            (name, output, self.specs[name].sizes, np.dtype(self.specs[name].dtype))
            for name, output in sequences.states
        )
        self.states: dict[str, Array] = {}
        self.steps = 0
        self.reset({})

    def reset(self, start: Tensors) -> None:
        """Begin again, with these states or zeros.

        Raises:
            InputError: a given state doesn't fit.
        """
        self.states = start_of(self.specs.values(), start)
        self.steps = 0

    def take(self, answer: Tensors) -> dict[str, Array]:
        """Keep the states of a step's answer for the next one, and return the rest of it.

        Raises:
            CandidateError: a state doesn't fit, or isn't finite; then the older states stay.
        """
        states = {}
        for name, output, shape, dtype in self._carried:
            state = answer.get(output)
            if state is None or state.shape != shape or state.dtype != dtype:
                raise misfit(self.specs[name], state, output)
            self.check_finite(name, state)
            # What the caller gets may be changed by the caller.
            own = output not in self._given_out and state.flags.c_contiguous
            states[name] = state if own else np.array(state, order="C")
        self.states = states
        self.steps += 1
        return {name: answer[name] for name in self._answers}

    def check_finite(self, name: str, state: Array) -> None:
        """Check that a next state has no NaN or Inf.

        Raises:
            CandidateError: it has.
        """
        if not _finite(state):
            raise CandidateError(
                f"the state {name!r} would have NaN or Inf after step {self.steps}: the state "
                "before it is kept; check that step's input"
            )


class BoundSteps:
    """Steps of one sequence by two calls that are bound to arrays: each reads the states that the other writes.

    So a step copies no state. One that fails has written only to the arrays that the states aren't in.

    Args:
        carrier: States of the sequence.
        calls: The two calls.
        given: Arrays that both calls read, by the name of the input.
        states: Arrays of the states by the name of the input: what the first call reads, and the second one.
        answers: Arrays that the first call and the second one write and the caller gets, by the name of the output.
    """

    def __init__(
        self,
        carrier: Carrier,
        calls: Sequence[Callable[[], None]],
        given: Tensors,
        states: Sequence[dict[str, Array]],
        answers: Sequence[Tensors],
    ) -> None:
        self._carrier = carrier
        self._given = tuple(
            (name, array, array.shape, array.dtype) for name, array in given.items()
        )
        self._states = tuple(states)
        flat = [[(name, array.reshape(-1)) for name, array in one.items()] for one in states]
        made = [tuple(one.items()) for one in answers]
        self._first = (calls[0], made[0], states[1], flat[1])
        self._second = (calls[1], made[1], states[0], flat[0])

    @classmethod
    def of(
        cls, carrier: Carrier, bind: Bind, request: Tensors, answer: Tensors
    ) -> BoundSteps | None:
        """Return the steps of a sequence; None if they can't be bound.

        Args:
            carrier: States of the sequence.
            bind: Binds a call.
            request: Request of a step, states included.
            answer: The model's answer, states included.
        """
        pairs = carrier.sequences.states
        given = {spec.name: _like(request[spec.name]) for spec in carrier.inputs}
        states = [{name: _like(request[name]) for name, _ in pairs} for _ in range(2)]
        carried = {output for _, output in pairs}
        rest = {name: _like(array) for name, array in answer.items() if name not in carried}
        calls, answers = [], []
        for before, after in (states, states[::-1]):
            written = rest | {output: after[name] for name, output in pairs}
            with contextlib.suppress(CandidateError):
                if (call := bind(given | before, written)) is not None:
                    calls.append(call)
            answers.append({spec.name: written[spec.name] for spec in carrier.outputs})
        return cls(carrier, calls, given, states, answers) if len(calls) == 2 else None

    def takes(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> bool:
        """Take a step's inputs, if they are arrays of the bound ones' dtypes and shapes.

        Args:
            arrays: Inputs in the model's order, or a mapping by name.
            named: Inputs by name.
        """
        if not named and len(arrays) == 1 and type(arrays[0]) is dict:
            named, arrays = arrays[0], ()
        if len(arrays or named) != len(self._given) or (arrays and named):
            return False
        for place, (name, held, shape, dtype) in enumerate(self._given):
            array = arrays[place] if arrays else named.get(name)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return False
            held[...] = array
        return True

    def answer(self) -> dict[str, Array]:
        """Answer a step whose inputs were taken, and keep its states for the next one.

        Raises:
            CandidateError: the engine failed, or a state isn't finite; then the older states stay.
            InputError: an input has other numbers than those that the model takes.
        """
        carrier = self._carrier
        if carrier.states is self._states[1]:
            call, made, after, flat = self._second
        else:
            if carrier.states is not self._states[0]:  # as at the start, and after a reset
                for name, array in self._states[0].items():
                    array[...] = carrier.states[name]
                carrier.states = self._states[0]
            call, made, after, flat = self._first
        call()
        for name, array in flat:
            # At once where there is no other way: a state of integers, NaN, or a square beyond all floats.
            if not (array.dtype is _FLOAT32 and math.isfinite(array.dot(array))):
                carrier.check_finite(name, array)
        carrier.states = after
        carrier.steps += 1
        return {name: array.copy() for name, array in made}


class StateSession:
    """One sequence: each call answers a step, and carries the states to the next call.

    A session serves one thread at a time. A step that fails leaves the states as they were.

    Args:
        model: Loaded bundle.
        sequences: States that it carries.
        start: States to begin with, by the input's name; zeros for those that aren't given.
        bind: Binds a call of the model to arrays; None where that would take a session of its own.

    Raises:
        InputError: a start state doesn't fit.
    """

    def __init__(
        self,
        model: Answering,
        sequences: Sequences,
        start: Mapping[str, Any],
        bind: Bind | None = None,
    ) -> None:
        self._model, self._binding, self._bind = model, bind, bind
        self._carrier = Carrier(model, sequences)
        self._start = start_of(self._carrier.specs.values(), _arrays(start))
        self._carrier.reset(self._start)
        self._busy = threading.RLock()
        """Lock that a signal handler may take in a step of its thread, to read the states."""
        takes = self._carrier.inputs
        self._names = tuple(spec.name for spec in takes)
        self._only = takes[0] if len(takes) == 1 else None
        self._seen: tuple[Any, ...] | None = None
        self._bound: BoundSteps | None = None
        self._stepping: int | None = None
        """Thread that has `_busy` for a step or a reset; one that reads the states has it only briefly."""
        after_forks(self, StateSession._anew)

    @property
    def steps(self) -> int:
        """Number of steps since the start."""
        return self._carrier.steps

    @property
    def states(self) -> dict[str, Array]:
        """Copies of the states that the next step begins with, by the input's name.

        Each has the dtype and the shape of its input.
        """
        with self._busy:  # another thread's steps overwrite older states
            return {name: array.copy() for name, array in self._carrier.states.items()}

    def __call__(self, /, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one step.

        Args:
            *arrays: Inputs that aren't states, in the model's order, or a mapping by name. Each has the
                dtype and the shape that `Loaded.inputs` gives for it; a dimension with a name may have
                any size that fits the states.
            **named: Inputs that aren't states, by name, instead of or in addition to `arrays`.

        Returns:
            Outputs by name, with the dtypes and shapes that `Loaded.outputs` gives. Outputs that are
            states are left out, unless every output is one.

        Raises:
            InputError: an input doesn't fit, or another thread is in a step of this session.
            CandidateError: the engine failed, or the next state isn't finite.
        """
        busy = self._taken(
            "the steps of a sequence run one after another; give each thread its own session"
        )
        try:
            self._stepping = threading.get_ident()
            if self._bound is not None and self._bound.takes(arrays, named):
                return self._bound.answer()
            request = self._request(arrays, named)
            request.update(self._carrier.states)
            answer = self._model.run(request)
            taken = self._carrier.take(answer)
            if self._bind is not None:  # the shapes are known now
                self._bound = BoundSteps.of(self._carrier, self._bind, request, answer)
                self._bind = None
            return taken
        finally:
            self._stepping = None
            busy.release()

    def reset(self, start: Mapping[str, Any] | None = None) -> None:
        """Begin a new sequence.

        Args:
            start: States to begin with; by default those that the session began with.

        Raises:
            InputError: a start state doesn't fit, or another thread is in a step.
        """
        busy = self._taken("reset the session when that step has ended")
        try:
            self._stepping = threading.get_ident()
            self._carrier.reset(self._start if start is None else _arrays(start))
        finally:
            self._stepping = None
            busy.release()

    def _taken(self, advice: str) -> threading.RLock:
        """Take `_busy` for a step or a reset, and return it: in a child of a fork it is another one.

        Args:
            advice: End of the error's message.

        Raises:
            InputError: another thread is in a step, or this one is, whose signal handler calls.
        """
        busy = self._busy
        if took := busy.acquire(False):
            if self._stepping is None:
                return busy
            busy.release()
        if took or self._stepping is not None:
            raise InputError(f"another thread is running a step of this session: {advice}")
        busy.acquire()
        return busy

    def _anew(self) -> None:
        """End the step of a thread that isn't in this process: the older states are whole."""
        if self._stepping != threading.get_ident():
            self._busy, self._stepping = threading.RLock(), None
            # A call in which that thread was stays busy, so the next step binds new ones.
            self._bound, self._bind = None, self._binding

    def _request(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
        only = self._only
        if only is not None and len(arrays) == 1 and type(arrays[0]) is np.ndarray and not named:
            array = arrays[0]
            if array.flags.c_contiguous and (array.shape, array.dtype) == self._seen:
                return {only.name: array}  # this shape was checked before
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named, arrays = {**arrays[0], **named}, ()
        if len(arrays) > len(self._names):
            raise InputError(
                f"a step takes {', '.join(self._names)}; got {amount(len(arrays), 'input')}"
            )
        if taken := sorted(self._carrier.specs.keys() & named.keys()):
            raise InputError(
                f"the session carries the state {taken[0]!r} itself: leave that input out, or "
                f"set the state with reset({{{taken[0]!r}: ...}})"
            )
        by_place = dict(zip(self._names, arrays, strict=False))
        if twice := by_place.keys() & named.keys():
            raise InputError(f"input {min(twice)!r} is given twice, by position and by name")
        tensors = _arrays({**by_place, **named})
        check_tensors(tensors, self._carrier.inputs)
        if only is not None:
            self._seen = (tensors[only.name].shape, tensors[only.name].dtype)
        return tensors


def _like(array: Array) -> Array:
    """Return an array of the same dtype and shape, C-contiguous."""
    return np.empty(array.shape, array.dtype)


def _arrays(given: Mapping[str, Any]) -> dict[str, Array]:
    arrays = {}
    for name, value in given.items():
        try:
            arrays[str(name)] = np.asarray(value, order="C")
        except ValueError as error:
            raise InputError(f"input {name!r} is not an array: {error}") from error
    return arrays


def _finite(state: Array) -> bool:
    """Whether a state has no NaN or Inf, at the cost of one product where it has none."""
    kind = state.dtype.kind
    if kind == "f" and state.dtype.itemsize >= 4 and math.isfinite(np.vdot(state, state)):
        return True
    return kind not in "fcV" or bool(np.isfinite(state).all())
