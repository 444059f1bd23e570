"""Plan of a chain's work on one value, stage by stage; the code that drives it runs the models.

`ChainPlan.run` is a generator: it yields the requests of one model, as many as fit into a batch, and is
sent their answers. So one process's own calls and a server's queues run the same stages, and memory
holds one batch of prepared samples at a time, however many boxes there are.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.varying import of_sample
from hasten.errors import BeyondRange, CandidateError, DeviceLost, InputError, IntegrityError
from hasten.inputs.chains.graph import Chain
from hasten.inputs.chains.nodes import SOURCE, Crop, Model, Node, When, asks_for_score, entries
from hasten.inputs.pipeline.base import Origin, Pipeline, Step, as_request
from hasten.inputs.pipeline.image import Decode, Recolor

_KINDS = (IntegrityError, InputError, BeyondRange, DeviceLost, CandidateError)
"""Kinds of errors that callers tell apart, each before its base."""


@dataclass(frozen=True)
class Member:
    """Model of a chain, as far as a plan needs to know it.

    Attributes:
        pipeline: Steps before and after the model.
        inputs: Inputs of a request, with a batch axis.
        most_rows: Largest number of samples to ask for at a time.
        varying: Names of outputs whose size depends on a sample's values.
    """

    pipeline: Pipeline
    inputs: tuple[TensorSpec, ...]
    most_rows: int = 1
    varying: tuple[str, ...] = ()

    @property
    def decode(self) -> Decode | None:
        """The pipeline's first step where it decodes pictures."""
        first = self.pipeline.steps[0] if self.pipeline.steps else None
        return first if isinstance(first, Decode) else None

    @cached_property
    def after_decoding(self) -> tuple[Step, ...]:
        """Steps of preprocessing after the picture was decoded in RGB, as they run."""
        if self.decode is None:
            return Pipeline(self.pipeline.steps).joined
        return Pipeline((*self.recoloring, *self.pipeline.steps[1:])).joined

    @property
    def recoloring(self) -> tuple[Step, ...]:
        """The step that changes the colors of a picture that was decoded in RGB; none if the model takes RGB."""
        if self.decode is None or self.decode.colors == "RGB":
            return ()
        return (Recolor(self.decode.colors),)


@dataclass(frozen=True)
class Ask:
    """Requests to one model, with one row each.

    Attributes:
        model: Name of the model's node.
        requests: Arrays by input name, for each sample.
    """

    model: str
    requests: tuple[dict[str, Array], ...]

    @property
    def size_bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for request in self.requests for array in request.values())


@dataclass
class Stage:
    """Times of one stage of a decision, in nanoseconds; samples of one stage are added up.

    Attributes:
        name: Name of the node; "decode" for the decoding of the source picture.
        samples: Number of samples.
        asks: Number of times that the model was asked, each for one or several samples.
        prepare_ns: Time before the model: decoding, cutting, preparing.
        run_ns: Time until the model's answers came, with the wait in line.
        decide_ns: Time after the model, from its outputs to decisions.
        begun_ns: Time of the clock when the stage began.
        ended_ns: Time of the clock when it ended.
    """

    name: str
    samples: int = 0
    asks: int = 0
    prepare_ns: int = 0
    run_ns: int = 0
    decide_ns: int = 0
    begun_ns: int = 0
    ended_ns: int = 0

    @property
    def total_ns(self) -> int:
        """Time of the whole stage."""
        return self.prepare_ns + self.run_ns + self.decide_ns


@dataclass
class Sample:
    """A sample on its way: what a model sees, and where its decision is put.

    Attributes:
        value: Picture `(height, width, 3)` uint8 in RGB, or what the chain was given.
        origin: Where the picture is in the source picture.
        decisions: Decisions by model; for a crop the box that was cut, which gets them as keys.
    """

    value: Any
    origin: Origin
    decisions: dict[str, Any] = field(default_factory=dict)


def parts_of(node: Node, stage: Stage) -> dict[str, int]:
    """Return the time of each part of a node, in nanoseconds.

    Args:
        node: The node.
        stage: The times of its stage.
    """
    if isinstance(node, Model):
        return {"prepare": stage.prepare_ns, "run": stage.run_ns, "decide": stage.decide_ns}
    return {"cut" if isinstance(node, Crop) else "choose": stage.total_ns}


class Inputs(Protocol):
    """Interface of what is kept of a chain's sample as its models take it."""

    def find(self, node: str) -> tuple[Any, Origin] | None:
        """Return the sample as a model takes it, and where it comes from; None if it isn't there."""

    def used(self, node: str) -> None:
        """Note that a model is asked about what `find` returned."""

    def made(self, node: str, prepared: Any, origin: Origin) -> None:
        """Keep the sample as a model takes it, which was prepared now."""


Run: TypeAlias = Generator[Ask, Sequence[Tensors], Any]


class ChainPlan:
    """Stages of a chain whose models are known.

    Args:
        chain: The chain.
        members: Its models, by their nodes' names.

    Raises:
        InputError: a model doesn't give what a node needs, as boxes for a crop or scores for a
            condition on one, or two that see the picture decode it differently.
    """

    def __init__(self, chain: Chain, members: Mapping[str, Member]) -> None:
        self.chain, self.members = chain, members
        for node in chain.nodes:
            if isinstance(node, (Crop, When)):
                self._check_decision(node)
        self._cuts = any(isinstance(node, Crop) for node in chain.nodes)
        self._decode = _one_for_all(
            {root.name: members[root.name].decode for root in chain.roots}, crops=self._cuts
        )
        self._seeing = [one.name for one in chain.models if chain.stream[one.name] == SOURCE]
        """Models that are asked about the chain's whole sample."""

    def steps_before(self, node: str) -> tuple[Step, ...]:
        """Return the steps from the chain's sample to what a model is asked; none if it sees crops."""
        member = self.members[node]
        if node not in self._seeing or self._decode is None or member.decode is None:
            return member.pipeline.steps if node in self._seeing else ()
        return (self._decode, *member.recoloring, *member.pipeline.steps[1:])

    def _ready(self, kept: Inputs | None) -> dict[str, tuple[Any, Origin]]:
        """Return the chain's sample as its models take it, as far as that is kept."""
        found = {} if kept is None else {node: kept.find(node) for node in self._seeing}
        return {node: one for node, one in found.items() if one is not None}

    def _check_decision(self, node: Crop | When) -> None:
        """Check that a model gives decisions that a node can use."""
        needed = "boxes" if isinstance(node, Crop) else "classes or boxes"
        name = node.comes_from
        after = self.members[name].pipeline.after
        if not after:
            raise InputError(
                f"{node.name} needs {needed}, but {name} returns its raw outputs: make its "
                "bundle with steps after the model"
            )
        if asks_for_score(node) and not after[-1].scored:
            raise InputError(
                f"{node.name} asks for a score, but {name} ends in {type_name(after[-1])}, whose "
                "decisions have none: ask for none, or end the pipeline in a step that gives one"
            )
        if isinstance(node, Crop):
            if after[-1].decides not in ("", "boxes"):
                raise InputError(
                    f"{node.name} needs boxes, but {name} ends in {type_name(after[-1])}, which "
                    f"returns {after[-1].decides}"
                )
            if self.chain.stream[name] == SOURCE and self.members[name].decode is None:
                raise InputError(
                    f"{node.name} cuts out parts of pictures, but the pipeline of {name} doesn't "
                    "begin with decode"
                )

    def run(
        self,
        value: Any,
        check: Callable[[], None] = lambda: None,
        stages: list[Stage] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        most_bytes: float = math.inf,
        kept: Inputs | None = None,
    ) -> Run:
        """Yield what to ask the models, and return the decision.

        Args:
            value: File's bytes or path, or a decoded picture `(height, width, 3)` uint8 in RGB.
            check: Function called before each piece of work; what it raises ends the run.
            stages: List that gets the stages' times.
            clock_ns: Monotonic clock.
            most_bytes: Size of prepared samples from which on a model isn't asked about further ones at the
                same time.
            kept: Cached forms of the value, as the models take it; None if nothing is cached.

        Raises:
            InputError: the value can't be read, or a decision isn't what the next node needs; the
                message names the node.
        """
        stages = [] if stages is None else stages
        check()
        start_ns = clock_ns()
        ready = self._ready(kept)
        if self._cuts or any(node not in ready for node in self._seeing):
            picture, origin = self._decoded(value)
        else:
            picture, origin = None, Origin()
        root = Sample(picture if picture is not None else value, origin)
        now_ns = clock_ns()
        decode = Stage("decode", 1, begun_ns=start_ns, ended_ns=now_ns)
        decode.prepare_ns = now_ns - start_ns
        stages.append(decode)
        samples = {SOURCE: [root]}
        for node in self.chain.in_order:
            start_ns = clock_ns()
            stage = Stage(node.name, begun_ns=start_ns)
            before = samples[node.comes_from]
            if isinstance(node, Model):
                asking = partial(self._ask, node, before, value, check, stage, clock_ns, most_bytes)
                yield from asking(ready.get(node.name), kept)
                samples[node.name] = before
            else:
                with named(node.name):
                    if isinstance(node, Crop):
                        after = self._cut(node, before, picture, origin)
                    else:
                        assert isinstance(node, When)
                        after = [s for s in before if node.holds(s.decisions[node.decision])]
                samples[node.name] = after
                stage.samples, stage.prepare_ns = len(after), clock_ns() - start_ns
            stage.ended_ns = clock_ns()
            stages.append(stage)
        decided = {model.name: root.decisions.get(model.name) for model in self.chain.roots}
        return next(iter(decided.values())) if len(decided) == 1 else decided

    def _ask(
        self,
        node: Model,
        samples: Sequence[Sample],
        given: Any,
        check: Callable[[], None],
        stage: Stage,
        clock_ns: Callable[[], int],
        most_bytes: float,
        ready: tuple[Any, Origin] | None,
        kept: Inputs | None,
    ) -> Generator[Ask, Sequence[Tensors], None]:
        """Prepare samples, a batch at a time, ask a model about them, and note its decisions."""
        member, done = self.members[node.name], 0
        whole = member.decode is None and self.chain.stream[node.name] == SOURCE
        made = kept.made if kept is not None and node.name in self._seeing else None
        while done < len(samples):
            start_ns = clock_ns()
            own = given if whole else None
            if ready is not None and kept is not None:
                with named(node.name):
                    prepared = [(as_request(ready[0], member.inputs), ready[1])]
                kept.used(node.name)
            else:
                prepared = list(
                    _prepared(node.name, member, samples[done:], own, check, most_bytes, made)
                )
            check()
            ready_ns = clock_ns()
            answers = yield Ask(node.name, tuple(request for request, _ in prepared))
            answered_ns = clock_ns()
            batch = samples[done : done + len(prepared)]
            done += len(batch)
            with named(node.name):
                for sample, answer, (_, origin) in zip(batch, answers, prepared, strict=True):
                    outputs = of_sample(answer, 0, member.varying)
                    sample.decisions[node.name] = member.pipeline.decided(outputs, origin)
            del prepared  # else it would stay while the next ones are prepared
            stage.samples += len(batch)
            stage.asks += 1
            stage.prepare_ns += ready_ns - start_ns
            stage.run_ns += answered_ns - ready_ns
            stage.decide_ns += clock_ns() - answered_ns

    def _decoded(self, value: Any) -> tuple[Array | None, Origin]:
        """Return the source picture and its origin; None where no model takes a picture.

        Raises:
            InputError: the value can't be read as a picture.
        """
        if self._decode is None:
            return None, Origin()
        if not isinstance(value, (bytes, Path, np.ndarray)):
            raise InputError(
                "a chain takes a picture as a file's bytes, a Path, or an array; got "
                f"{type(value).__name__}"
            )
        return self._decode.traced(value, Origin())

    def _cut(
        self, node: Crop, samples: Sequence[Sample], picture: Array | None, origin: Origin
    ) -> list[Sample]:
        """Cut out the boxes that a model found; each box gets its readers' keys, None until they decide."""
        assert picture is not None
        readers = [model.name for model in self.chain.readers(node)]
        found: list[dict[str, Any]] = []
        for sample in samples:
            decision = entries(sample.decisions[node.boxes], "boxes", node.name)
            boxes = [box if isinstance(box, dict) else dict(box) for box in decision]
            sample.decisions[node.boxes] = boxes
            found += boxes
            if len(found) > node.most:
                raise InputError(
                    f"{len(found)} boxes in one picture are more than {node.most}: raise {node.name}.most, "
                    "or make the detector return fewer"
                )
        cut = []
        for box in found:
            for name in readers:
                box.setdefault(name, None)
            corners = _corners(box)
            if not node.wants(box):
                continue
            (down, across), (above, left) = origin.scale, origin.offset
            x1, y1, x2, y2 = corners
            there = (
                *((x1 - left) / across, (y1 - above) / down),
                *((x2 - left) / across, (y2 - above) / down),
            )
            area = node.area(there, *picture.shape[:2])
            if area is not None:
                top, bottom, first, stop = area
                view = picture[top:bottom, first:stop]
                cut.append(Sample(view, origin.cut(top, first), box))
        return cut


def _one_for_all(steps: Mapping[str, Decode | None], *, crops: bool) -> Decode | None:
    """Return the step that decodes a picture once for all models that see it.

    It has the strictest of their limits, and gives RGB, whose colors each model changes itself. It reduces the
    picture only if all of them do so equally and nothing is cut out of it, since crops need every pixel.

    Args:
        steps: Each model's own step, by its name; None where it takes no picture.
        crops: Whether anything is cut out of the picture.

    Raises:
        InputError: one turns pictures upright and another doesn't.
    """
    own = {name: step for name, step in steps.items() if step is not None}
    if not own:
        return None
    turned = {step.orient: name for name, step in own.items()}
    if len(turned) > 1:
        raise InputError(
            f"{turned[True]} turns pictures upright as their EXIF data says, but {turned[False]} has "
            "decode.orient=False, and a chain decodes a picture once: make both bundles with the same "
            "setting, or ask them apart"
        )
    first, least = next(iter(own.values())), {step.least for step in own.values()}
    bounds = [step.memory_per_byte for step in own.values() if step.memory_per_byte]
    return replace(
        first,
        max_pixels=min(step.max_pixels for step in own.values()),
        memory_per_byte=min(bounds, default=0),
        least=first.least if len(least) == 1 and not crops else 0,
        colors="RGB",
    )


def _prepared(
    node: str,
    member: Member,
    samples: Sequence[Sample],
    given: Any,
    check: Callable[[], None],
    most_bytes: float,
    made: Callable[[str, Any, Origin], None] | None,
) -> Iterator[tuple[dict[str, Array], Origin]]:
    """Prepare as many samples as a model is asked about at a time.

    Args:
        node: Name of the model's node.
        member: The model.
        samples: The samples, from the first that isn't prepared yet.
        given: Value that the chain was given, if the model takes that; else None.
        check: Function called before each sample.
        most_bytes: Size of the prepared samples from which on no further ones are prepared.
        made: Function that keeps what was prepared; None for nothing.
    """
    taken = 0
    for sample in samples[: member.most_rows]:
        check()
        with named(node):
            prepared, origin = sample.value if given is None else given, sample.origin
            if member.pipeline.reads_text:
                origin = replace(origin, keeps_text=True)
            for step in member.after_decoding:
                prepared, origin = step.traced(prepared, origin)
            request = as_request(prepared, member.inputs)
        if made is not None:
            made(node, prepared, origin)
        yield request, origin
        size = sum(array.nbytes for array in request.values())
        taken += size
        if taken + size > most_bytes:
            return


@contextlib.contextmanager
def named(node: str) -> Iterator[None]:
    """Put a node's name before the errors of what runs inside, which stay of the kind that callers tell apart."""
    try:
        yield
    except (InputError, CandidateError) as error:
        kind = next(kind for kind in _KINDS if isinstance(error, kind))
        raise kind(f"{node}: {error}") from error


def _corners(box: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return a box's corners x1, y1, x2, y2.

    Raises:
        InputError: there is no box of four numbers.
    """
    corners = box.get("box")
    try:
        x1, y1, x2, y2 = map(float, corners)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"boxes have a key box with the corners x1, y1, x2, y2; got {corners!r:.100}"
        ) from error
    return x1, y1, x2, y2
