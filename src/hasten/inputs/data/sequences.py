"""Data set of whole sequences, for a model that carries a state from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.sequences import LENGTHS, Pairs
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.source import open_data


class SequenceData(Dataset):
    """Sequences: every input has an axis of steps after the axis of samples.

    An input without that axis is the same in each step. A start state, under its input's name, has
    none either. `lengths`, integers of shape `(n,)`, says how many steps count in each sequence;
    what follows is padding.

    Attributes:
        whole: Data set that the sequences are read from.
        steps: Number of steps of the longest sequence, padding included.

    Args:
        whole: Data set to read.
        inputs: Inputs of the model; open dimensions have names.
        states: States of the model.

    Raises:
        InputError: an input is missing or unknown, has no axis of steps, or has another number of
            steps than the first; a sequence has no steps.
    """

    def __init__(self, whole: Dataset, inputs: Sequence[TensorSpec], states: Pairs) -> None:
        if whole.ragged:
            raise InputError(
                "sequences of a model with states= must have one length: pad them, and state in "
                f"{LENGTHS}, of shape (n,), how many steps count in each"
            )
        self.whole = whole
        self.labels, self.groups = whole.labels, whole.groups
        specs = {spec.name: spec for spec in inputs}
        starts = {name for name, _ in states}
        self._takes = [name for name in specs if name not in starts]
        self._renamed = {}
        if len(self._takes) == len(set(whole.names) - {LENGTHS}) == 1:
            self._renamed = {next(n for n in whole.names if n != LENGTHS): self._takes[0]}
        own = [self._renamed.get(name, name) for name in whole.names]
        padded = LENGTHS in own and LENGTHS not in specs
        if missing := [name for name in self._takes if name not in own]:
            raise InputError(
                f"a step of the model takes {', '.join(self._takes)}; the sequences have no "
                f"{', '.join(missing)}"
            )
        if unknown := [name for name in own if name not in specs and name != LENGTHS]:
            raise InputError(
                f"the sequences have {', '.join(unknown)}, which isn't an input of the model"
            )
        self.names = tuple(own)
        self.lengths = padded
        first = self._named(whole.inputs([0]))
        self._constant = {
            name for name in self._takes if not _stepped(specs[name], first[name][0], name)
        }
        counts = {n: first[n].shape[1] for n in self._takes if n not in self._constant}
        if not counts:
            raise InputError(
                "no input of the sequences has an axis of steps: give arrays (n, steps, ...)"
            )
        name, self.steps = next(iter(counts.items()))
        for other, count in counts.items():
            if count != self.steps:
                raise InputError(
                    f"input {other!r}: {count} steps, but {name!r} has {self.steps}; pad them to "
                    f"one length, and state in {LENGTHS} how many steps count"
                )
        if self.steps == 0:
            raise InputError("the sequences have no steps: give arrays (n, steps, ...)")

    def __len__(self) -> int:
        return len(self.whole)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = self._named(self.whole.inputs(indices))
        for name in self._constant:
            array = read[name]
            shape = (len(array), self.steps, *array.shape[1:])
            read[name] = np.broadcast_to(array[:, np.newaxis], shape)
        if self.lengths:
            read[LENGTHS] = self._checked(read[LENGTHS], indices)
        return read

    def content_hash(self, index: int) -> bytes:
        if self.lengths:
            self._checked(self.whole.inputs([index])[LENGTHS], [index])
        return self.whole.content_hash(index)

    def has_former_hashes(self) -> bool:
        return self.whole.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.whole.former_hash(index)

    def step(self, index: int) -> dict[str, Array]:
        """Return the first step of a sequence, without an axis for samples and without states."""
        read = self.inputs([index])
        return {name: read[name][0, 0, ...] for name in self._takes}

    def mean_steps(self) -> float:
        """Return the mean number of steps of a sequence, without padding."""
        if not self.lengths:
            return float(self.steps)
        return float(np.mean([self.inputs([i])[LENGTHS][0] for i in range(len(self))]))

    def _named(self, read: Mapping[str, Array]) -> dict[str, Array]:
        return {self._renamed.get(name, name): array for name, array in read.items()}

    def _checked(self, lengths: Array, indices: Sequence[int]) -> Array:
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise InputError(
                f"{LENGTHS} must be whole numbers of shape (n,); got {lengths.dtype} "
                f"{list(lengths.shape)}"
            )
        wrong = np.flatnonzero((lengths < 1) | (lengths > self.steps))
        if len(wrong):
            raise InputError(
                f"{LENGTHS}: sequence {indices[wrong[0]]} has {lengths[wrong[0]]} steps; give 1 "
                f"to {self.steps}, the number of steps in the arrays"
            )
        return lengths.astype(np.int64)


def _stepped(spec: TensorSpec, sample: Array, name: str) -> bool:
    """Whether a sample has an axis of steps before what the model takes, with or without a batch.

    Raises:
        InputError: its rank fits neither a sequence nor a single step.
    """
    rank = len(spec.shape)
    if sample.ndim == rank + 1 or (sample.ndim == rank and rank > 0):
        return True
    if sample.ndim == max(rank - 1, 0):
        return False
    raise InputError(
        f"input {name!r}: the model takes {spec} in a step; a sequence of the data is "
        f"{sample.dtype}{list(sample.shape)}: give (n, steps, ...), with one step's own axes last"
    )


def open_sequences(
    data: Any, inputs: Sequence[TensorSpec], states: Pairs, workdir: Path | None
) -> SequenceData:
    """Open data whose samples are whole sequences.

    Args:
        data: Data in any form that `open_data` takes.
        inputs: Inputs of the model.
        states: States of the model.
        workdir: Folder to unpack data to, empty or not yet there; None for a temporary one.

    Raises:
        InputError: there is no such data, or it isn't of sequences; see `SequenceData`.
    """
    if isinstance(data, SequenceData):
        return data
    starts = {name for name, _ in states}
    own = [spec for spec in inputs if spec.name not in starts]
    bare = data[0] if isinstance(data, tuple) and data else data
    nameless = isinstance(bare, np.ndarray) and len(own) == 1
    return SequenceData(open_data(data, own if nameless else (), None, workdir), inputs, states)
