"""Entities of a text, from a network that gives each token a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import array_of, check_finite, check_shape, output_of
from hasten.inputs.pipeline.tags import entities
from hasten.inputs.pipeline.text_words import words_of


@dataclass(frozen=True)
class Entities(PostStep):
    """Names, places, amounts in a text: a list of `{"entity", "text", "start", "end", "score"}`.

    Words are the tokenizer's, which mostly divides at punctuation, too, and a word has the class of its first token.
    `start` and `end` count characters of the text, without spaces around the entity. `score` is the mean of the words' probabilities. Neighboring words are one entity by their tags'
    prefixes: `hasten.inputs.pipeline.tags.entities` has the rules.

    Attributes:
        labels: Tag of each class, in order: B-PER, I-PER, O, ...
        output: Name of the model's output [tokens, classes]; by default its only one.
    """

    reads_text: ClassVar[bool] = True
    labels: tuple[str, ...]
    output: str = ""

    def __post_init__(self) -> None:
        """Check that there are tags."""
        if len(self.labels) < 2 or not all(self.labels):
            raise InputError(
                "entities.labels needs the tag of each class, in order, as in [O, B-PER, I-PER]"
            )

    @property
    def _needs(self) -> str:
        count = len(self.labels)
        return f"entities has {count} tags, and needs scores of shape [batch, tokens, {count}]"

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with a score for each tag at each token.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "entities")
        check_shape(spec, (None, len(self.labels)), self._needs)

    def __call__(self, value: Any, origin: Origin) -> list[dict[str, Any]]:
        scores = array_of(value, self.output, "entities")
        text = origin.text
        if text is None:
            raise InputError(
                "entities needs one text that the step tokenize read; the sample came as tokens, or as a pair of texts"
            )
        if scores.ndim != 2 or scores.shape[1] != len(self.labels):
            raise InputError(f"{self._needs}; got {list(scores.shape)} without the batch")
        if len(text.words) != len(scores):
            raise InputError(
                f"entities got scores of {len(scores)} tokens; the text has {len(text.words)}"
            )
        words = words_of(text)
        if not words:
            return []
        chosen = scores[[word.token for word in words]].astype(np.float32)
        check_finite(chosen, "entities", self.output)
        classes = chosen.argmax(axis=1)
        chosen -= chosen.max(axis=1, keepdims=True)
        likely = 1 / np.exp(chosen, out=chosen).sum(axis=1)
        told = []
        for kind, begin, after in entities([self.labels[k] for k in classes.tolist()]):
            start, end = words[begin].start, words[after - 1].end
            told.append(
                {
                    "entity": kind,
                    "text": text.text[start:end],
                    "start": start,
                    "end": end,
                    "score": float(likely[begin:after].mean()),
                }
            )
        return told
