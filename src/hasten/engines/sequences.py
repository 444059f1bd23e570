"""Session that answers whole sequences: it carries a model's states from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hasten.core.sequences import LENGTHS, Sequences, settled_states, start_of
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Session
from hasten.errors import CandidateError, InputError, Uneven

Observer = Callable[[int, Tensors], None]
"""Function that sees each step's number and request, states included, before it is answered."""


class SequenceSession(Session):
    """A session whose requests are sequences: every input has an axis of steps in front.

    Each state begins with zeros, or with what the request holds under its name, and then is what
    the step before gave. A request may hold `lengths`: then the steps from there on are padding,
    and their answers are zeros.

    Args:
        session: Session of the model, which answers one step.
        sequences: States that are carried.
        request: Inputs of one step, states included, with every size settled.
    """

    batch_sizes = (1,)

    def __init__(
        self, session: Session, sequences: Sequences, request: Sequence[TensorSpec]
    ) -> None:
        self._session, self._sequences = session, sequences
        self._steps = {spec.name: spec for spec in request if spec.name not in sequences.inputs}
        self._states = settled_states(sequences.states, request, tuple(self._steps.values()))
        self.inputs = session.inputs
        extra = (TensorSpec(LENGTHS, "int64", (1,)),) if sequences.lengths else ()
        self.outputs = (*sequences.answers(session.outputs), *extra)

    def run(self, inputs: Tensors, observe: Observer | None = None) -> dict[str, Array]:
        """Answer a sequence.

        Args:
            inputs: Arrays of shape `(steps, ...)` by input name; start states, and `lengths`.
            observe: Function that sees each step's request.

        Returns:
            Answers of shape `(1, steps, ...)` by output name, without those that are states.

        Raises:
            CandidateError: the runtime failed, or a state that it gave doesn't fit or isn't finite.
        """
        try:
            states = start_of(
                self._states.values(), {n: inputs[n] for n in self._states if n in inputs}
            )
        except InputError as error:
            raise CandidateError(str(error)) from error
        given = {
            name: np.asarray(inputs[name], order="C").reshape(-1, *spec.sizes)
            for name, spec in self._steps.items()
        }
        steps = len(next(iter(given.values())))
        count = int(inputs[LENGTHS]) if self._sequences.lengths else steps
        answers = []
        for step in range(count):
            request = {**{name: array[step, ...] for name, array in given.items()}, **states}
            if observe is not None:
                _check_finite(states, step)
                observe(step, request)
            answer = self._session.run(request)
            states = carried(self._sequences, answer, self._states)
            answers.append(answer)
        _check_finite(states, count)
        return self._stacked(answers, steps)

    def _stacked(self, answers: Sequence[Tensors], steps: int) -> dict[str, Array]:
        stacked = {}
        for spec in self.outputs:
            if spec.name == LENGTHS and self._sequences.lengths:
                stacked[LENGTHS] = np.array([len(answers)], np.int64)
                continue
            each = [np.asarray(answer[spec.name]) for answer in answers]
            if len({array.shape for array in each}) > 1:
                raise Uneven(f"output {spec.name!r} changes its shape from step to step")
            batched = each[0].ndim > 0 and each[0].shape[0] == 1
            whole = np.stack(each, axis=1) if batched else np.stack(each)[np.newaxis]
            if len(answers) < steps:
                missing = [(0, 0), (0, steps - len(answers)), *[(0, 0)] * (whole.ndim - 2)]
                whole = np.pad(whole, missing)
            stacked[spec.name] = whole
        return stacked

    def properties(self) -> Mapping[str, str]:
        return self._session.properties()

    def settle(self, again: Callable[[], object]) -> None:
        self._session.settle(again)

    def device_times(self) -> Mapping[str, str]:
        return self._session.device_times()

    def shares(self) -> Mapping[str, tuple[int, int]]:
        return self._session.shares()


def _check_finite(states: Tensors, steps: int) -> None:
    for name, state in states.items():
        if state.dtype.kind == "f" and not np.isfinite(state).all():
            raise CandidateError(f"the state {name!r} has NaN or Inf within {steps} steps")


def carried(
    sequences: Sequences, answer: Tensors, specs: Mapping[str, TensorSpec]
) -> dict[str, Array]:
    """Return the states that a step's answer gives the next one.

    Args:
        sequences: States that are carried.
        answer: Outputs of the step.
        specs: Spec of each state, with every size settled.

    Raises:
        CandidateError: a state is missing, or has another dtype or shape than the model takes.
    """
    states = {}
    for name, output in sequences.states:
        state, spec = answer.get(output), specs[name]
        if state is None or state.shape != spec.shape or state.dtype != spec.dtype:
            raise misfit(spec, state, output)
        states[name] = np.asarray(state, order="C")
    return states


def misfit(spec: TensorSpec, state: Array | None, output: str) -> CandidateError:
    """Return the error for a step's state that the next step can't take."""
    got = "nothing" if state is None else f"{state.dtype}{list(state.shape)}"
    return CandidateError(
        f"the model takes the state {spec}, but a step returned {got} as {output}"
    )
