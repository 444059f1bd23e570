"""Conformance suites for steps of a pipeline: subclass `StepTests` or `PostStepTests` and name the step."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hasten.core.records import Value, from_record, to_record
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep, Step

_ALIKE = 0.88
"""Similarity from which a name counts as a misspelled one; see `difflib.get_close_matches`."""


def misspelled(step: Step | PostStep) -> dict[str, str]:
    """Return names of a step that are nearly names of its contract: name -> the one that was surely meant.

    hasten reads the contract's names alone, so a misspelled one has no effect.
    """
    contract = PostStep if isinstance(step, PostStep) else Step
    known = _public(contract)
    found = {}
    for name in sorted(_public(type(step)) - known):
        if near := difflib.get_close_matches(name, known, 1, _ALIKE):
            found[name] = near[0]
    return found


def _public(kind: type) -> set[str]:
    annotated = {name for each in kind.__mro__ for name in inspect.get_annotations(each)}
    return {name for name in annotated | set(dir(kind)) if not name.startswith("_")}


def _read_back(family: type[Value], step: Value) -> Any:
    return from_record(family, json.loads(json.dumps(to_record(step))), trusted=True)


class StepTests:
    """Claims that hold for every step before the model.

    Attributes:
        step: The step.
        sample: Sample as it was sent, if the step is the first one; None if it takes another step's output.
    """

    step: Step
    sample: bytes | None = None

    def test_its_record_makes_the_same_step(self) -> None:
        assert _read_back(Step, self.step) == self.step

    def test_no_name_of_the_contract_is_misspelled(self) -> None:
        found = misspelled(self.step)
        assert not found, f"a name, and the one of the contract that is nearly the same: {found}"

    def test_the_memory_for_what_strangers_send_is_bounded(self) -> None:
        if self.sample is not None:
            assert self.step.bounded or self.step.memory_per_byte > 0, (
                "say by `bounded = True` that the work grows with the bytes alone, or by the field "
                "`memory_per_byte` how much memory each of them may take"
            )

    def test_what_is_no_sample_is_refused_or_read(self) -> None:
        if self.sample is None:
            return
        self.step(self.sample)
        for damaged in _damaged(self.sample):
            with contextlib.suppress(InputError):  # what it can still read is no error
                self.step(damaged)


class PostStepTests:
    """Claims that hold for every step after the model.

    Attributes:
        step: The step.
    """

    step: PostStep

    def test_its_record_makes_the_same_step(self) -> None:
        assert _read_back(PostStep, self.step) == self.step

    def test_no_name_of_the_contract_is_misspelled(self) -> None:
        found = misspelled(self.step)
        assert not found, f"a name, and the one of the contract that is nearly the same: {found}"

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_both_decisions_by_one_score_are_those_that_it_takes(self, dtype: str) -> None:
        both = self.step.either_or(np.dtype(dtype))
        if both is None:
            return
        least = np.asarray(both.least, dtype)
        scores = [
            least,
            np.nextafter(least, np.asarray(-np.inf, dtype)),
            *least.dtype.type((-1e3, 0, 1e3)),
        ]
        for score in scores:
            decision = self.step({"score": np.array([score])}, Origin())
            known = both.reached if score.item() >= both.least else both.below
            assert json.dumps(decision) == json.dumps({**known, "score": score.item()})


def _damaged(sample: bytes) -> Iterator[bytes]:
    """Yield bytes that are no sample, most of them: none, a part, changed ones, random ones."""
    rng = np.random.default_rng(0)
    yield b""
    yield sample[: len(sample) // 2]
    yield sample + b"\0"
    for _ in range(20):
        changed = bytearray(sample)
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
        yield bytes(changed)
        yield rng.bytes(int(rng.integers(1, 60)))
