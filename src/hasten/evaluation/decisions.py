"""Comparison of decisions: whether a chain decides as its exact models' chain does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.chains import Chain
from hasten.inputs.chains.nodes import Crop
from hasten.inputs.metrics.detection_f1 import overlaps
from hasten.inputs.pipeline.base import Pipeline, PostStep, equal_except_scores

LEAST_IOU = 0.5
"""Least overlap of two boxes that are one thing, as intersection over union."""
_OWN = ("box", "class", "label", "score")


class Comparison:
    """Comparison of the decisions of one chain, model by model.

    Boxes agree if there are as many and each overlaps one of its label by an IoU of 0.5 or more, and
    what other models read in the two agrees too. Any other decision agrees if the last step of its
    model's pipeline says so: `PostStep.agrees`.

    Args:
        chain: The chain.
        pipelines: Pipelines of its models, by their nodes' names.

    Raises:
        InputError: a model returns its raw outputs.
    """

    def __init__(self, chain: Chain, pipelines: Mapping[str, Pipeline]) -> None:
        self._roots = [model.name for model in chain.roots]
        self._last: dict[str, PostStep] = {}
        for name, pipeline in pipelines.items():
            if not pipeline.after:
                raise InputError(
                    f"{name} returns its raw outputs, and arrays can't be compared as decisions: make "
                    "its bundle with steps after the model"
                )
            self._last[name] = pipeline.after[-1]
        self._readers: dict[str, list[str]] = {name: [] for name in pipelines}
        for node in chain.nodes:
            if isinstance(node, Crop):
                self._readers[node.boxes] += [model.name for model in chain.readers(node)]
        cut = {node.boxes for node in chain.nodes if isinstance(node, Crop)}
        self._with_boxes = cut | {n for n, step in self._last.items() if step.decides == "boxes"}

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether a decision of the chain is that of its exact models, for the one who acts on it.

        Args:
            decision: Decision of the chain.
            exact: Decision of the chain of the exact models on the same value.
        """
        if len(self._roots) == 1:
            return self._same(self._roots[0], decision, exact)
        return all(self._same(name, decision[name], exact[name]) for name in self._roots)

    def _same(self, name: str, mine: Any, exact: Any) -> bool:
        """Whether two decisions of a model agree; None where it wasn't asked."""
        if mine is None or exact is None:
            return mine is exact
        if name in self._with_boxes:
            return len(mine) == len(exact) and self._boxes_agree(name, mine, exact)
        return self._last[name].agrees(mine, exact)

    def _boxes_agree(
        self, name: str, mine: Sequence[Mapping[str, Any]], exact: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Match each exact box to the free one of its label that overlaps it most, best pairs first."""
        overlap = overlaps(_corners(mine), _corners(exact))
        for row, one in enumerate(mine):
            overlap[row, [_what(one) != _what(other) for other in exact]] = 0
        for _ in exact:
            row, column = divmod(int(overlap.argmax()), len(exact))
            if overlap[row, column] < LEAST_IOU:
                return False
            if not self._read_alike(name, mine[row], exact[column]):
                return False
            overlap[row], overlap[:, column] = -1, -1
        return True

    def _read_alike(self, name: str, box: Mapping[str, Any], exact: Mapping[str, Any]) -> bool:
        """Whether other models read the same in two boxes, and steps of a plug-in told the same."""
        readers = self._readers[name]
        told = [
            {key: value for key, value in one.items() if key not in (*_OWN, *readers)}
            for one in (box, exact)
        ]
        return equal_except_scores(*told) and all(
            self._same(reader, box[reader], exact[reader]) for reader in readers
        )


def _corners(boxes: Sequence[Mapping[str, Any]]) -> Array:
    return np.array([box["box"] for box in boxes], np.float64).reshape(-1, 4)


def _what(one: Mapping[str, Any]) -> tuple[Any, Any]:
    return one.get("class"), one.get("label")
