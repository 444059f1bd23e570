"""Contracts of a pipeline: steps from a file's bytes to the model's inputs, and from its outputs to a decision."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from hasten.core.records import Value, type_name
from hasten.core.registry import Registry
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError


@dataclass(frozen=True)
class Tokenized:
    """Text that a sample's tokens come from.

    Attributes:
        text: The text itself.
        words: Number of the word that each token belongs to, int32 `(tokens,)`; -1 for special tokens and padding.
        spans: First character of each token, and the character after its last one, int32 `(tokens, 2)`.
    """

    text: str
    words: Array = field(repr=False, compare=False)
    spans: Array = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the text, the words and the spans take."""
        return sys.getsizeof(self.text) + self.words.nbytes + self.spans.nbytes


@dataclass(frozen=True)
class Origin:
    """Where a prepared sample comes from: a position p in it is `offset + scale * p` in its source.

    Attributes:
        height: Height of the source picture, in pixels; 0 where the source isn't a picture.
        width: Width of the source picture, in pixels; 0 where the source isn't a picture.
        scale: Pixels of the source per pixel of the sample, down and across.
        offset: Position of the sample's upper left corner in the source, down and across.
        text: Text that the sample's tokens come from; None where the source isn't one text, or no step after
            the model reads it.
        keeps_text: Whether a step after the model reads `text`, so that the step which makes tokens keeps it.
    """

    height: int = 0
    width: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    text: Tokenized | None = None
    keeps_text: bool = False

    def resized(self, old: Sequence[int], new: Sequence[int]) -> Origin:
        """Return the origin after a picture of one (height, width) was resized to another."""
        down, across = self.scale
        return replace(self, scale=(down * old[0] / new[0], across * old[1] / new[1]))

    def cut(self, top: float, left: float) -> Origin:
        """Return the origin after a picture was cut at a row and a column; borders are negative."""
        (down, across), (above, before) = self.scale, self.offset
        return replace(self, offset=(above + down * top, before + across * left))


class Step(Value, ABC):
    """Step of preprocessing: a frozen dataclass whose fields are its settings.

    Attributes:
        packages: Distributions that the step imports beside numpy, as `pip install` takes them.
        extra: hasten's extra that brings them; "" where there are none.
        bounded: Whether the step's work grows with its input's bytes alone, as that of reading a row
            does; a picture of few bytes may have many pixels.
        deterministic: Whether the step makes the same of an equal input whenever it is called, as far as its
            settings are equal. A server caches no sample that a step without this prepared, and no decision on one.
    """

    registry: ClassVar[Registry] = Registry(
        "step",
        "hasten.steps",
        {
            "decode": "hasten.inputs.pipeline.image:Decode",
            "resize": "hasten.inputs.pipeline.image:Resize",
            "letterbox": "hasten.inputs.pipeline.letterbox:Letterbox",
            "center_crop": "hasten.inputs.pipeline.image:CenterCrop",
            "normalize": "hasten.inputs.pipeline.image:Normalize",
            "to_layout": "hasten.inputs.pipeline.image:ToLayout",
            "tokenize": "hasten.inputs.pipeline.text:Tokenize",
            "decode_audio": "hasten.inputs.pipeline.audio:DecodeAudio",
            "fit_length": "hasten.inputs.pipeline.audio:FitLength",
            "log_mel": "hasten.inputs.pipeline.audio:LogMel",
            "standardize": "hasten.inputs.pipeline.standardize:Standardize",
            "row": "hasten.inputs.pipeline.rows:Row",
        },
    )
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    bounded: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    memory_per_byte: int = 0
    """Bytes of memory that a sample may take for each byte in which it was sent; 0 for any number. A step that
    decodes what strangers send has a field of this name, and refuses a sample that would take more. A server
    gives a sample no more than the largest of its pipeline's steps allows."""
    longest_bytes: ClassVar[int] = 0
    """Size of the longest sample that a server takes for a pipeline with this step; 0 for any."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Turn the previous step's output into the next step's input.

        Raises:
            InputError: the value can't be read or doesn't fit; the message says why.
        """

    def traced(self, value: Any, origin: Origin) -> tuple[Any, Origin]:
        """Return what a call returns, and the sample's origin after it.

        A step that moves or scales a picture overrides this, so that boxes can be told in the
        source's own pixels, and a step that makes tokens, so that entities can be told in the text.
        """
        return self(value), origin

    @property
    def name(self) -> str:
        """Name of the step for people, as in a table of latencies."""
        return type_name(self)

    def joined(self, following: Step) -> Step | None:
        """Return one step that does this one's and the following one's work, equal bit for bit.

        A step overrides this where both are faster in one pass. None where they aren't.
        """
        return None


def unfit(step: str, value: Any, needed: str) -> InputError:
    """Return the error for a value that a step before the model can't take, as where steps are in a wrong order.

    Args:
        step: Name of the step.
        value: Value that it got.
        needed: Description of what it takes, and of where it belongs.
    """
    array = isinstance(value, np.ndarray)
    got = (
        f"{list(value.shape)} of {value.dtype}"
        if array
        else f"a value of type {type(value).__name__}"
    )
    return InputError(f"the step {step} takes {needed}, but gets {got}")


OUTPUTS = "the model's outputs"
"""Kind of value that the first step after the model takes: arrays by name, for one sample."""
BOXES = "boxes"
"""Kind of value: `hasten.inputs.pipeline.boxes.Boxes`, in pixels of the sample."""
DECISION = "a decision"
"""Kind of value that the last step gives: what JSON can represent."""


class EitherOr(NamedTuple):
    """Both decisions that a step takes by a finite score.

    Attributes:
        least: Least score of the second decision.
        below: Decision on a lower score, with None under "score".
        reached: Decision on any other score, with None under "score".
    """

    least: float
    below: dict[str, Any]
    reached: dict[str, Any]


class PostStep(Value, ABC):
    """Step of postprocessing: a frozen dataclass whose fields are its settings.

    Attributes:
        takes: Kind of value that the step takes: `OUTPUTS`, `BOXES`, `DECISION`, or a plug-in's own.
        gives: Kind of value that the step gives.
        packages: Distributions that the step imports beside numpy, as `pip install` takes them.
        extra: hasten's extra that brings them; "" where there are none.
        decides: Form of its decision, for a chain of models that goes on from it: "classes" or "boxes";
            "" for any other.
        scored: Whether a chain's condition may ask for the score of its decision, or of each class or box in it.
        reads_text: Whether the step reads `Origin.text`, which is only kept for such steps.
    """

    registry: ClassVar[Registry] = Registry(
        "step after the model",
        "hasten.post_steps",
        {
            "top_k": "hasten.inputs.pipeline.classes:TopK",
            "threshold": "hasten.inputs.pipeline.threshold:Threshold",
            "multi_label": "hasten.inputs.pipeline.multi_label:MultiLabel",
            "boxes": "hasten.inputs.pipeline.boxes:GivenBoxes",
            "yolo_boxes": "hasten.inputs.pipeline.yolo:YoloBoxes",
            "darknet_boxes": "hasten.inputs.pipeline.darknet:DarknetBoxes",
            "ssd_boxes": "hasten.inputs.pipeline.ssd:SsdBoxes",
            "nms": "hasten.inputs.pipeline.nms:Nms",
            "ctc": "hasten.inputs.pipeline.ctc:Ctc",
            "entities": "hasten.inputs.pipeline.entities:Entities",
            "l2_normalize": "hasten.inputs.pipeline.vectors:L2Normalize",
            "quantity": "hasten.inputs.pipeline.vectors:Quantity",
            "mask": "hasten.inputs.pipeline.mask:Mask",
        },
    )
    takes: ClassVar[str] = OUTPUTS
    gives: ClassVar[str] = DECISION
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    decides: ClassVar[str] = ""
    scored: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    labels: tuple[str, ...] = ()
    """Name of each class, in order, for the people who label samples; empty where classes have none."""

    @abstractmethod
    def __call__(self, value: Any, origin: Origin) -> Any:
        """Turn the previous step's result into the next one's.

        Args:
            value: For the first step the model's outputs for one sample, arrays without a batch
                axis by name; for others what the step before returned. The last step returns what
                JSON can represent: numbers, texts, lists and dicts.
            origin: Where the sample comes from.

        Raises:
            InputError: the value doesn't fit; the message says what was needed.
        """

    def either_or(self, dtype: np.dtype[Any]) -> EitherOr | None:
        """Return both decisions of a step that compares a model's only number with a threshold; None for any other.

        A server answers a row by them in a quarter of the time of asking the step and writing its decision.

        Args:
            dtype: Type of the number.
        """
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes, in order; empty where the step doesn't know them."""
        return self.labels

    def naming(self, classes: tuple[str, ...]) -> Self:
        """Return the step with the names of the model's classes, if it takes names, has none, and they fit."""
        takes = any(one.name == "labels" for one in fields(self))  # type: ignore[arg-type]
        if not takes or not classes or self.labels:
            return self
        return replace(self, labels=classes)  # type: ignore[type-var]

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that a model's outputs, which have a batch axis, are what the first step needs.

        Raises:
            InputError: they aren't; the message says what the step needs and what there is.
        """

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether a decision is that of the exact model, for the one who acts on it.

        By default everything except scores must be equal. A last step whose decisions may differ
        a little without a consequence overrides this. Boxes aren't compared by this method, but by
        `hasten.evaluation.decisions`, because a chain's other models put their decisions into them.

        Args:
            decision: Decision of this step as the last one of its pipeline.
            exact: Decision of this step for the exact model's outputs.
        """
        return equal_except_scores(decision, exact)


def equal_except_scores(one: Any, other: Any) -> bool:
    """Whether two decisions are equal in all that they contain, except numbers named "score".

    Args:
        one: Values that JSON can represent, or arrays of them.
        other: Values that JSON can represent, or arrays of them.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            key == "score" or equal_except_scores(one[key], other[key]) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal_except_scores, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


@dataclass(frozen=True)
class Pipeline:
    """Steps in order, from a file's bytes to the model's inputs, and from its outputs to a decision.

    Attributes:
        steps: Steps of preprocessing, in order.
        after: Steps of postprocessing, in order; none where the outputs themselves are the answer.
        folded: Steps that would come after `steps` and that the model's own graph does instead;
            none where the graph is as it was given.
    """

    steps: tuple[Step, ...]
    after: tuple[PostStep, ...] = ()
    folded: tuple[Step, ...] = ()

    def __call__(self, value: Any) -> Any:
        """Return one prepared sample without a batch axis: an array, or arrays by input name.

        Args:
            value: Sample as the first step takes it: for pictures a file's bytes, or its path.

        Raises:
            InputError: the sample can't be read or doesn't fit.
        """
        for step in self.joined:
            value = step(value)
        return value

    def prepared(self, value: Any) -> tuple[Any, Origin]:
        """Return what a call returns, and where that sample comes from.

        Args:
            value: Sample as a call takes it.

        Raises:
            InputError: the sample can't be read or doesn't fit.
        """
        origin = self.source
        for step in self.joined:
            value, origin = step.traced(value, origin)
        return value, origin

    def decided(self, outputs: Tensors, origin: Origin) -> Any:
        """Return the decision on one sample; without steps after the model, its outputs.

        Args:
            outputs: The model's outputs for the sample by name, with the dtypes and shapes that the model
                gives, but without a batch axis.
            origin: Where the sample comes from.

        Raises:
            InputError: the outputs aren't what a step needs.
        """
        value: Any = outputs
        for step in self.after:
            value = step(value, origin)
        return value

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that the steps after the model fit its outputs and each other, and end in a decision.

        Args:
            outputs: The model's outputs, which have a batch axis.

        Raises:
            InputError: a step doesn't fit; the message says which, what it gets and what it needs.
        """
        given, giver = OUTPUTS, ""
        for step in self.after:
            name = type_name(step)
            if step.takes != given:
                raise InputError(
                    f"the step {name} takes {step.takes}, but gets {given}"
                    f"{f' from {giver}' if giver else ''}: {_todo(step.takes, given)}"
                )
            given, giver = step.gives, name
        if self.after:
            if given != DECISION:
                raise InputError(
                    f"the last step after the model, {giver}, gives {given}, not a decision: "
                    f"{_todo(DECISION, given)}"
                )
            self.after[0].check(outputs)

    @property
    def whole(self) -> Pipeline:
        """The pipeline for the model as it was given, before steps were folded into its graph."""
        return Pipeline((*self.steps, *self.folded), self.after)

    def behind(self, own: Pipeline | None) -> Pipeline:
        """Return the pipeline with a model's own steps before it, if it has only steps after the model.

        Its first step gets the model's own names of classes, if it has none.

        Args:
            own: Pipeline that the model states; None for a model that states none.
        """
        if own is None or self.steps or not self.after:
            return self
        names = own.after[0].class_names if own.after else ()
        return Pipeline(own.steps, (self.after[0].naming(names), *self.after[1:]), own.folded)

    @cached_property
    def reads_text(self) -> bool:
        """Whether a step after the model reads the text that a sample's tokens come from."""
        return any(step.reads_text for step in self.after)

    @cached_property
    def deterministic(self) -> bool:
        """Whether the steps before the model make the same of an equal sample whenever they run."""
        return all(step.deterministic for step in self.steps)

    @cached_property
    def source(self) -> Origin:
        """Origin of a sample before the first step."""
        return Origin(keeps_text=self.reads_text)

    @cached_property
    def joined(self) -> tuple[Step, ...]:
        """The steps of preprocessing as they run: those that are faster in one pass are one."""
        steps: list[Step] = []
        for step in self.steps:
            one = steps[-1].joined(step) if steps else None
            steps[-1:] = [one] if one is not None else [*steps[-1:], step]
        return tuple(steps)

    @property
    def all(self) -> Iterator[Step | PostStep]:
        """Every step, in order."""
        yield from self.steps
        yield from self.after


def _todo(takes: str, given: str) -> str:
    """Return what to do where a step, or the end of a pipeline, gets another kind of value."""
    fitting = [
        name
        for name, path in PostStep.registry.items()
        if path.startswith("hasten.")
        and (kind := PostStep.member(name)).takes == given
        and kind.gives == takes
    ]
    if not fitting:
        return "leave out one of them" if given != OUTPUTS else "leave it out"
    return (
        f"put {' or '.join(fitting)} between"
        if takes != DECISION
        else f"add {' or '.join(fitting)}"
    )


def as_request(prepared: Any, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return a prepared sample as a request with one row, by input name.

    Args:
        prepared: Array for the model's only input, or arrays by name, without a batch axis.
        inputs: The model's inputs, which have a batch axis.

    Raises:
        InputError: the sample has other names than the inputs, or another shape or type.
    """
    if not isinstance(prepared, Mapping):
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise InputError(
                f"the pipeline gives one array, but the model takes the inputs {names}"
            )
        prepared = {inputs[0].name: prepared}
    request = {}
    for spec in inputs:
        if spec.name not in prepared:
            raise InputError(
                f"the pipeline gives {', '.join(prepared) or 'nothing'}, but the model takes {spec}"
            )
        array = np.ascontiguousarray(prepared[spec.name])[None]  # engines take no others
        if not spec.fits(array):
            raise InputError(
                f"the pipeline gives {list(array.shape)} of {array.dtype} with its batch axis, "
                f"but the model takes {spec}"
            )
        request[spec.name] = array
    return request


def check_steps(pipeline: Pipeline | None) -> None:
    """Check that a bundle can store a pipeline, which it does by the steps' registered names.

    Raises:
        InputError: a step isn't registered; the message names it.
    """
    for step in () if pipeline is None else pipeline.all:
        if (name := type_name(step)) not in step.registry:
            raise InputError(
                f"a bundle can't store the step {name}, only {', '.join(step.registry)}: "
                "preprocess the data in your own code, and give arrays"
            )
