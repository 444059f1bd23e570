"""Nodes of a chain: a model, a crop of each box that a model found, a condition on a decision."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core.records import Value, type_name
from hasten.core.registry import Registry
from hasten.errors import InputError

SOURCE = "source"
"""Name of the value that a chain is given, such as a picture."""
MOST_BOXES = 10_000
"""Largest number of boxes that a crop may be set to accept."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_KEYS = ("box", "class", "label", "score")


class Node(Value, ABC):
    """Node of a chain: a frozen dataclass whose fields are its settings.

    Attributes:
        name: Name of the node in its chain, and of a model's decision in the chain's decision.
    """

    registry: ClassVar[Registry] = Registry(
        "node of a chain",
        "hasten.chain_nodes",
        {
            "model": "hasten.inputs.chains.nodes:Model",
            "crop": "hasten.inputs.chains.nodes:Crop",
            "when": "hasten.inputs.chains.nodes:When",
        },
    )
    name: str

    @property
    @abstractmethod
    def comes_from(self) -> str:
        """Name of the node whose result this one takes, or `SOURCE`."""

    def __post_init__(self) -> None:
        """Check the name."""
        if not _NAME.fullmatch(self.name) or self.name in (SOURCE, *_KEYS):
            raise InputError(
                f"{self.name!r:.80} can't be the name of a chain's node: use at most 64 letters, "
                f"digits, _ and -, begin with a letter, and don't use {', '.join((SOURCE, *_KEYS))}"
            )


@dataclass(frozen=True)
class Model(Node):
    """A bundle with its own pipeline: one decision for each sample of its source.

    Attributes:
        name: Name of the node, and the key of its decision.
        bundle: Folder of the bundle.
        source: `SOURCE`, or the name of a crop or a condition.
    """

    name: str
    bundle: str
    source: str = SOURCE

    @property
    def comes_from(self) -> str:
        """Name of the crop or condition whose pictures the model takes, or `SOURCE`."""
        return self.source


@dataclass(frozen=True)
class Crop(Node):
    """One picture for each box that a model found, cut out of the source picture.

    Attributes:
        name: Name of the node.
        boxes: Name of the model whose decision is boxes.
        labels: Labels, or class numbers as text, of the boxes to cut; all where empty.
        least_score: Least score of a box to cut; None for boxes of any score.
        margin: Border around a box, as a share of the box's width and height on each side.
        least_size: Least width and height of a cut picture, in its pixels; boxes that give smaller
            ones aren't cut.
        most: Largest number of boxes in one picture; more are an error.
    """

    name: str
    boxes: str
    labels: tuple[str, ...] = ()
    least_score: float | None = None
    margin: float = 0.0
    least_size: int = 4
    most: int = 1000

    @property
    def comes_from(self) -> str:
        """Name of the model whose boxes are cut."""
        return self.boxes

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.least_score is not None:
            _check_score(self.name, "least_score", self.least_score)
        if not 0 <= self.margin <= 10:
            raise InputError(f"{self.name}.margin={self.margin!r}: give a share from 0 to 10")
        if not 1 <= self.least_size <= 2**16:
            raise InputError(f"{self.name}.least_size={self.least_size!r}: give 1 to {2**16}")
        if not 1 <= self.most <= MOST_BOXES:
            raise InputError(f"{self.name}.most={self.most!r}: give 1 to {MOST_BOXES}")

    def wants(self, box: Mapping[str, Any]) -> bool:
        """Whether a box has one of the labels and at least the score.

        Args:
            box: Box of a detector's decision.

        Raises:
            InputError: the box has no score though one is asked for.
        """
        return _fulfils(self, box, None)

    def area(
        self, box: Sequence[float], height: int, width: int
    ) -> tuple[int, int, int, int] | None:
        """Return the rows and columns to cut: top, bottom, left, right.

        Args:
            box: Corners x1, y1, x2, y2, in the picture's pixels.
            height: Height of the picture in pixels.
            width: Width of the picture in pixels.

        Returns:
            Whole pixels that hold the box and its margin, within the picture; None where they are
            fewer than `least_size` in a direction, or a corner isn't a finite number.
        """
        if not all(map(math.isfinite, box)):
            return None
        x1, y1, x2, y2 = box
        across, down = self.margin * (x2 - x1), self.margin * (y2 - y1)
        left, right = _within(x1 - across, x2 + across, width)
        top, bottom = _within(y1 - down, y2 + down, height)
        if min(bottom - top, right - left) < self.least_size:
            return None
        return top, bottom, left, right


@dataclass(frozen=True)
class When(Node):
    """Those samples of a model that got a certain decision from it; only they go on.

    A classifier's decision meets the condition if its most likely class does, whether or not the
    classifier abstained; a detector's if any of its boxes does, and a yes or no by its own label and score.

    Attributes:
        name: Name of the node.
        decision: Name of the model that decides.
        labels: Labels, or class numbers as text, one of which is needed; any where empty.
        least_score: Least score that is needed; None for no such limit.
        below: Score that must not be reached, as for samples on which a model is unsure; None for
            no such limit.
    """

    name: str
    decision: str
    labels: tuple[str, ...] = ()
    least_score: float | None = None
    below: float | None = None

    @property
    def comes_from(self) -> str:
        """Name of the model that decides."""
        return self.decision

    def __post_init__(self) -> None:
        """Check the limits."""
        super().__post_init__()
        if self.least_score is not None:
            _check_score(self.name, "least_score", self.least_score)
        if self.below is not None:
            _check_score(self.name, "below", self.below)
            if self.least_score is not None and self.below <= self.least_score:
                raise InputError(
                    f"{self.name}: no score is at least {self.least_score:g} and below {self.below:g}"
                )

    def holds(self, decision: Any) -> bool:
        """Whether a decision meets the condition.

        Args:
            decision: Decision of the model that decides.

        Raises:
            InputError: the decision is neither boxes nor classes, or has no score though one is asked for.
        """
        if isinstance(decision, Mapping) and "abstained" in decision:  # as of `top_k` with `least`
            decision = decision.get("likeliest", decision.get("classes", decision))
        given = [decision] if isinstance(decision, Mapping) else decision
        found = entries(given, "classes or boxes", self.name)
        if found and "box" not in found[0]:
            found = found[:1]
        each = [
            _fulfils(self, one, self.below) for one in found
        ]  # so that none without a score is missed
        return any(each)


def entries(decision: Any, needed: str, name: str) -> list[Mapping[str, Any]]:
    """Return a decision that is a list of boxes or classes.

    Args:
        decision: Decision of a model.
        needed: Description of what the node needs, for the message.
        name: Name of the node that needs it.

    Raises:
        InputError: the decision is something else.
    """
    if not isinstance(decision, list) or not all(isinstance(one, Mapping) for one in decision):
        raise InputError(
            f"{name} needs {needed}, a list of dicts; the decision is {type(decision).__name__}"
        )
    return decision


def asks_for_score(node: Crop | When) -> bool:
    """Whether a node goes by the scores of a decision; by a least score of 0 only those below it are left out."""
    return bool(node.least_score) or (isinstance(node, When) and node.below is not None)


def kind_of(node: Node) -> str:
    """Return the kind of a node, as a chain's file names it: "model", "crop", "when"."""
    return type_name(node)


def _check_score(name: str, setting: str, score: float) -> None:
    if not math.isfinite(score):
        raise InputError(f"{name}.{setting}={score!r}: give a finite number")


def _fulfils(node: Crop | When, one: Mapping[str, Any], below: float | None) -> bool:
    score = one.get("score")
    if score is None and asks_for_score(node):
        raise InputError(
            f"{node.name} asks for a score; the decision has only {', '.join(map(str, one)):.200}"
        )
    if node.labels and not {str(one.get("label")), str(one.get("class"))} & set(node.labels):
        return False
    least = node.least_score
    return score is None or bool(
        (least is None or score >= least) and (below is None or score < below)
    )


def _within(low: float, high: float, size: int) -> tuple[int, int]:
    """Return whole pixels that hold a range, within a picture's side; equal where there are none."""
    first, stop = max(0.0, low), min(float(size), high)
    return (math.floor(first), math.ceil(stop)) if first < stop else (0, 0)
