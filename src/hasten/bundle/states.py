"""Session of a loaded bundle that carries the model's states from step to step."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hasten.core.sequences import Sequences, start_of
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.core.words import amount
from hasten.engines.sequences import misfit
from hasten.errors import CandidateError, InputError


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
            if not _finite(state):
                raise CandidateError(
                    f"the state {name!r} would have NaN or Inf after step {self.steps}: the state "
                    "before it is kept; check that step's input"
                )
            # What the caller gets may be changed by the caller.
            own = output not in self._given_out and state.flags.c_contiguous
            states[name] = state if own else np.array(state, order="C")
        self.states = states
        self.steps += 1
        return {name: answer[name] for name in self._answers}


class StateSession:
    """One sequence: each call answers a step, and carries the states to the next call.

    A session serves one thread at a time. A step that fails leaves the states as they were.

    Args:
        model: Loaded bundle.
        sequences: States that it carries.
        start: States to begin with, by the input's name; zeros for those that aren't given.

    Raises:
        InputError: a start state doesn't fit.
    """

    def __init__(self, model: Answering, sequences: Sequences, start: Mapping[str, Any]) -> None:
        self._model = model
        self._carrier = Carrier(model, sequences)
        self._start = start_of(self._carrier.specs.values(), _arrays(start))
        self._carrier.reset(self._start)
        self._busy = threading.Lock()
        takes = self._carrier.inputs
        self._names = tuple(spec.name for spec in takes)
        self._only = takes[0] if len(takes) == 1 else None
        self._seen: tuple[Any, ...] | None = None

    @property
    def steps(self) -> int:
        """Number of steps since the start."""
        return self._carrier.steps

    @property
    def states(self) -> dict[str, Array]:
        """Copies of the states that the next step begins with, by the input's name.

        Each has the dtype and the shape of its input.
        """
        return {name: array.copy() for name, array in self._carrier.states.items()}

    def __call__(self, *arrays: Any, **named: Any) -> dict[str, Array]:
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
        if not self._busy.acquire(blocking=False):
            raise InputError(
                "another thread is running a step of this session: the steps of a sequence run "
                "one after another; give each thread its own session"
            )
        try:
            request = self._request(arrays, named)
            request.update(self._carrier.states)
            return self._carrier.take(self._model.run(request))
        finally:
            self._busy.release()

    def reset(self, start: Mapping[str, Any] | None = None) -> None:
        """Begin a new sequence.

        Args:
            start: States to begin with; by default those that the session began with.

        Raises:
            InputError: a start state doesn't fit, or another thread is in a step.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError(
                "another thread is running a step of this session: reset the "
                "session when that step has ended"
            )
        try:
            self._carrier.reset(self._start if start is None else _arrays(start))
        finally:
            self._busy.release()

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
