"""Metrics for texts that a network reads or hears: character and word error rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import of_samples, one_output
from hasten.inputs.metrics.vocabulary import classes_read, read_vocabulary, spelled
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.ctc import Ctc

Transcript: TypeAlias = str | list[str] | list[int]


@dataclass(frozen=True)
class ErrorRate(Metric):
    """Score 1 - min(1, errors / length of the true text), by the fewest edits between the texts.

    An edit inserts, leaves out or replaces one unit (Levenshtein's distance). Of an empty true
    text the score is 1 for an empty answer, and else 0. Without labels, what the exact model reads
    is the truth.

    The output is a CTC's scores `(n, times, classes)`, read along the likeliest path, or classes
    `(n, length)` in which numbers below 0 are padding. Labels are texts `(n,)`, which need an
    alphabet, or classes `(n, length)` with such padding, or padded with a CTC's blank.

    Attributes:
        alphabet: Text of each class, with or without the blank's; empty where classes themselves
            are compared.
        blank: Class of a CTC's blank; -1 where it is the last.
        output: Name of the output to read; None for a model with a single output.
    """

    alphabet: tuple[str, ...] = ()
    blank: int = 0
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name, a vocabulary's file, and the blank's class: "cer:vocab.json,blank=3"."""
        path, comma, more = setting.partition(",")
        if path.startswith("blank="):
            path, more, comma = "", path, ","
        blank = more.removeprefix("blank=")
        if comma and (not more.startswith("blank=") or not blank.removeprefix("-").isdecimal()):
            raise InputError(
                f"metric {text!r}: {more!r} isn't a setting; write the blank's class as blank=0"
            )
        alphabet = read_vocabulary(path, text) if path else ()
        return cls(alphabet, int(blank) if comma else 0)

    def around(self, pipeline: Pipeline | None) -> Metric:
        """Return the metric with the alphabet and the blank of a ctc step, where it names none."""
        after = () if pipeline is None else pipeline.after
        step = next((one for one in after if isinstance(one, Ctc)), None)
        if step is None or self.alphabet:
            return self
        output = self.output or step.output or None
        return replace(self, alphabet=step.alphabet, blank=step.blank, output=output)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        from_model = self._read(outputs)
        truth = self._read(exact) if labels is None else self._labelled(labels, outputs)
        pairs = zip(from_model, truth, strict=True)
        return np.array([self._kept(mine, true) for mine, true in pairs], np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where both models read the same."""
        pairs = zip(self._read(outputs), self._read(others), strict=True)
        return np.array([mine == theirs for mine, theirs in pairs], bool)

    def _bare(self, classes: Sequence[list[int]]) -> list[Transcript]:
        """Return classes without a vocabulary, each of which counts as a unit."""
        return [*classes]

    @abstractmethod
    def _units(self, text: str) -> Transcript:
        """Return a text as the units that errors are counted in."""

    def _read(self, outputs: Tensors) -> list[Transcript]:
        """Return what a model read in each sample."""
        output = one_output(outputs, self.output, type_name(self))
        return self._spelled(classes_read(output, self.blank, type_name(self)), output)

    def _spelled(self, classes: Sequence[list[int]], output: Array) -> list[Transcript]:
        """Return classes as texts, by the vocabulary; as they are without one."""
        if not self.alphabet:
            return self._bare(classes)
        who, pieces, left_out = type_name(self), len(self.alphabet), None
        if output.ndim == 3:
            width = output.shape[2]
            if pieces not in (width - 1, width):
                raise InputError(
                    f"{who}: the vocabulary has {pieces} pieces; the output is {of_samples(output)}, so it "
                    f"takes {width}, or {width - 1} without the blank"
                )
            left_out = self.blank % width if pieces < width else None
        texts = spelled(classes, self.alphabet, left_out=left_out, who=who)
        return [self._units(text) for text in texts]

    def _labelled(self, labels: Array, outputs: Tensors) -> list[Transcript]:
        """Return the true text of each sample."""
        who = type_name(self)
        output = one_output(outputs, self.output, who)
        count = len(output)
        if labels.dtype.kind in "US" and labels.shape in ((count,), (count, 1)):
            if not self.alphabet:
                raise InputError(
                    f"{who}: the labels are text, but no vocabulary states the text of each "
                    f"class: name its file, as in {who}:vocab.txt"
                )
            return [self._units(" ".join(str(text).split())) for text in labels.reshape(-1)]
        if labels.dtype.kind not in "iu" or labels.ndim != 2:
            raise InputError(
                f"{who} reads labels (n,) that are texts, or integers (n, length) padded with "
                f"-1; got {labels.dtype} {of_samples(labels, count)}"
            )
        # The text of a CTC has no blank, so that in labels it can only be padding.
        blank = self.blank % output.shape[2] if output.ndim == 3 else None
        rows = [[c for c in row if c >= 0 and c != blank] for row in labels.tolist()]
        return self._spelled(rows, output)

    def _kept(self, mine: Transcript, true: Transcript) -> float:
        """Return one minus the error rate of one sample."""
        if mine == true or not true:
            return float(mine == true)
        try:
            from rapidfuzz.distance import Levenshtein
        except ImportError as error:
            raise missing_extra(f"the metric {type_name(self)}", "transcripts") from error
        return 1 - min(1.0, float(Levenshtein.distance(mine, true)) / len(true))


@dataclass(frozen=True)
class Cer(ErrorRate):
    """Score 1 minus the character error rate of a sample, at least 0.

    Without an alphabet each class counts as a character.
    """

    noun: ClassVar[str] = "1 - CER"
    title: ClassVar[str] = "1 - character error rate"
    spellings: ClassVar[tuple[str, ...]] = ("cer[:VOCABULARY][,blank=CLASS]",)

    def _units(self, text: str) -> Transcript:
        return text


@dataclass(frozen=True)
class Wer(ErrorRate):
    """Score 1 minus the word error rate of a sample, at least 0; words are what spaces divide."""

    noun: ClassVar[str] = "1 - WER"
    title: ClassVar[str] = "1 - word error rate"
    spellings: ClassVar[tuple[str, ...]] = ("wer:VOCABULARY[,blank=CLASS]",)

    def _bare(self, classes: Sequence[list[int]]) -> list[Transcript]:
        """Refuse classes without a vocabulary: nothing says where a word ends."""
        raise InputError("wer counts words, so it needs the text of each class: wer:vocab.txt")

    def _units(self, text: str) -> Transcript:
        return text.split()
