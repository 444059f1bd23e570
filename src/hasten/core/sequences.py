"""States that a model carries from step to step, and how sequences of steps are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError

Scored: TypeAlias = Literal["all", "last"]
"""Steps of a sequence that its score is about."""
Pairs: TypeAlias = tuple[tuple[str, str], ...]
"""States, each as the input that takes it and the output that gives the next one."""
LENGTHS = "lengths"
"""Name of the data's array, and of an answer's, that says how many steps each sequence has."""
_BEFORE = ("past_key_values", "past_", "prev_", "previous_", "in_", "initial_", "init_")
_AFTER = ("present_key_values", "present_", "next_", "new_", "out_", "final_")
_BEFORE_ENDS = ("_in", "_input", "_prev", "_past", "_0", "0")
_AFTER_ENDS = ("_out", "_output", "_next", "_new", "_present", "_n", "N", "n", "1", "_1")


@dataclass(frozen=True)
class Sequences:
    """The states of a model, and which of a sequence's steps count.

    Attributes:
        states: Pairs of the input that takes a state and the output that gives the next one.
        scored: Steps that a sequence's score is about: the mean over all, or the last one.
        lengths: Whether each sequence says how many steps it has, since the others are padding.
    """

    states: Pairs
    scored: Scored = "all"
    lengths: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that take a state."""
        return tuple(name for name, _ in self.states)

    def answers(self, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return the outputs that aren't states; all where every output is one."""
        return answers(self.states, outputs)


def answers(states: Pairs, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs that aren't states; all where every output is one."""
    kept = {name for _, name in states}
    return tuple(spec for spec in outputs if spec.name not in kept) or tuple(outputs)


def pairs_of(given: Mapping[str, str] | str | Iterable[str] | Iterable[Sequence[str]]) -> Pairs:
    """Read states as a person gives them.

    Args:
        given: A mapping of input to output, pairs, or texts such as "h=h_out,c=c_out".

    Raises:
        InputError: a text isn't of this form.
    """
    if isinstance(given, Mapping):
        return tuple((str(one), str(other)) for one, other in given.items())
    found: list[tuple[str, str]] = []
    for item in [given] if isinstance(given, str) else given:
        if not isinstance(item, str):
            one, other = item
            found.append((str(one), str(other)))
            continue
        for text in item.split(","):
            one, equals, other = (part.strip() for part in text.partition("="))
            if not (one and equals and other):
                raise InputError(
                    f"a state is the input that takes it and the output that returns the next one, such as "
                    f'states="h=h_out": got {item!r}'
                )
            found.append((one, other))
    return tuple(found)


def check_states(
    states: Pairs, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Check that states are inputs and outputs of a model that fit each other.

    Raises:
        InputError: a name isn't there or is given twice, or a pair's types or shapes differ.
    """
    taking, giving = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    for there, names, what in (
        (taking, [one for one, _ in states], "input"),
        (giving, [other for _, other in states], "output"),
    ):
        counts = Counter(names)
        for name in names:
            if name not in there:
                raise InputError(
                    f"the model has no {what} {name!r} to carry a state; it has {', '.join(there)}"
                )
            if counts[name] > 1:
                raise InputError(f"the {what} {name!r} carries two states: give each one once")
    for one, other in states:
        if not _alike(taking[one], giving[other]):
            raise InputError(
                f"the input and the output of the state {one}={other} differ: the model takes "
                f"{taking[one]} and returns {giving[other]}"
            )
    if states and len(states) == len(taking):
        raise InputError(
            "every input of the model is a state, so a step has no input left to take: got "
            f"{', '.join(taking)}"
        )


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    """Whether two specs have one dtype, and no settled sizes that differ."""
    if one.dtype != other.dtype:
        return False
    if len(one.shape) != len(other.shape):
        return False
    return all(
        isinstance(a, str) or isinstance(b, str) or a == b
        for a, b in zip(one.shape, other.shape, strict=True)
    )


def likely_states(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Pairs:
    """Return the states that a model's own names show: h_in with h_out, state with stateN, ...

    A pair has one stem, one dtype and one shape, and neither of it fits any other.
    """
    by_stem: dict[str, dict[str, TensorSpec]] = {}
    for other in outputs:
        for stem in _stems(other.name):
            by_stem.setdefault(stem, {})[other.name] = other
    found = []
    for spec in inputs:
        near = {
            name: other
            for stem in _stems(spec.name, before=True)
            for name, other in by_stem.get(stem, {}).items()
        }
        fit = [name for name, other in near.items() if _alike(spec, other)]
        if len(fit) == 1:
            found.append((spec.name, fit[0]))
    given = Counter(other for _, other in found)
    return tuple(pair for pair in found if given[pair[1]] == 1 and pair[0] != pair[1])


def _stems(name: str, *, before: bool = False) -> set[str]:
    """Return a name without what marks it as a state before or after a step, and as it is."""
    starts, ends = (_BEFORE, _BEFORE_ENDS) if before else (_AFTER, _AFTER_ENDS)
    found = {name}
    found |= {name.removeprefix(start) for start in starts if name.startswith(start)}
    found |= {name.removesuffix(end) for end in ends if name.endswith(end)}
    return {stem.strip("_.").lower() for stem in found} - {""}


def settled_states(
    states: Pairs, inputs: Sequence[TensorSpec], request: Sequence[TensorSpec]
) -> dict[str, TensorSpec]:
    """Return the specs of states with every size settled.

    An open size is the one that an input of a step has under the same name, else 1.

    Args:
        states: States of the model.
        inputs: Inputs of the model; open dimensions have names.
        request: Inputs of one step that aren't states, with every size settled.
    """
    sizes: dict[str, int] = {}
    specs = {spec.name: spec for spec in inputs}
    for settled in request:
        for want, size in zip(specs[settled.name].shape, settled.sizes, strict=True):
            if isinstance(want, str) and want != "?":
                sizes.setdefault(want, size)
    return {
        name: TensorSpec(
            name,
            specs[name].dtype,
            tuple(sizes.get(n, 1) if isinstance(n, str) else n for n in specs[name].shape),
        )
        for name, _ in states
    }


def start_of(specs: Iterable[TensorSpec], given: Tensors) -> dict[str, Array]:
    """Return the states to begin with: those that were given, else zeros.

    Args:
        specs: Specs of the states, with every size settled.
        given: Start states by the input's name; each of a spec's size.

    Raises:
        InputError: a given state isn't one of the model's, has another dtype or size, or NaN or Inf.
    """
    start = {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in specs}
    for name, array in given.items():
        if name not in start:
            raise InputError(f"the model has no state {name!r}; it has {', '.join(start)}")
        zeros, array = start[name], np.asarray(array)
        if array.dtype != zeros.dtype or array.size != zeros.size:
            raise InputError(
                f"the start of the state {name!r} is {zeros.dtype}{list(zeros.shape)}; got "
                f"{array.dtype}{list(array.shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"the start of the state {name!r} has NaN or Inf")
        start[name] = np.array(array.reshape(zeros.shape), order="C")
    return start
