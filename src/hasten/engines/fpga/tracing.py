"""Conversion of an ONNX graph to a fixed-point program, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from hasten.core.tensors import TensorSpec
from hasten.engines.fpga import trees
from hasten.engines.fpga.formats import Format, format_for
from hasten.engines.fpga.operators import OPERATORS
from hasten.engines.fpga.program import Epilogue, FpgaProgram, Port, Ports
from hasten.engines.fpga.ranges import ElementRange
from hasten.engines.fpga.values import PRODUCTS, Values, Widths, attributes
from hasten.errors import CandidateError, NotCovered

TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})


def trace(
    proto: onnx.ModelProto,
    ranges: Mapping[str, ElementRange],
    widths: Widths,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> FpgaProgram:
    """Turn a graph into additions, shifts, comparisons and tables of fixed-point numbers.

    Sums are exact; the inputs of a product are rounded to its width.

    Args:
        proto: Simplified float graph with all shapes settled, batch 1.
        ranges: Ranges of every tensor, by name.
        widths: Widths of the numbers.
        inputs: Specs of the model's inputs.
        outputs: Specs of the model's outputs.

    Raises:
        CandidateError: an operator has no fixed-point form here; the message names its node.
    """
    return _Tracer(proto, ranges, widths).program(inputs, outputs)


class _Tracer:
    """Graph on its way to a program, with the steps that are left to readers of the outputs."""

    def __init__(
        self, proto: onnx.ModelProto, ranges: Mapping[str, ElementRange], widths: Widths
    ) -> None:
        self._graph, self._values = proto.graph, Values(proto, ranges, widths)
        self._endings: dict[str, dict[str, Any]] = {}
        """Steps left to readers of the outputs, by the output's name, as fields of its port."""

    def program(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> FpgaProgram:
        """Trace the whole graph."""
        from da4ml.trace import comb_trace

        ports_in, begin = [], []
        for spec in inputs:
            value, port = self._input(spec)
            self._values.tensors[spec.name] = value
            ports_in.append(port)
            begin.append(np.ravel(value._vars))
        results = {spec.name for spec in outputs}
        for node in self._graph.node:
            if self._left_to_the_reader(node, results):
                kind: Epilogue = "softmax" if node.op_type == "Softmax" else "log_softmax"
                axis = int(attributes(node).get("axis", -1))
                self._endings[node.output[0]] = {"epilogue": kind, "axis": axis}
                self._values.tensors[node.output[0]] = self._values.value(node.input[0])
                continue
            self._apply(node)
        ports_out, end = [], []
        for spec in outputs:
            value = self._values.tensors.get(spec.name)
            if value is None:
                raise CandidateError(f"the output {spec.name!r} doesn't depend on the inputs")
            ports_out.append(_port(spec.name, value, self._endings.get(spec.name, {})))
            end.append(np.ravel(value._vars))
        logic = comb_trace(np.concatenate(begin), np.concatenate(end), keep_dead_inputs=True)
        products = tuple(n.name for n in self._graph.node if n.op_type in PRODUCTS)
        ports = Ports(tuple(ports_in), tuple(_settled(ports_out, logic)), products)
        return FpgaProgram(logic, ports)

    def _input(self, spec: TensorSpec) -> tuple[Any, Port]:
        if not (spec.dtype.startswith("float") and spec.shape and spec.shape[0] == 1):
            raise NotCovered(f"an FPGA design takes float inputs, one sample at a time: got {spec}")
        seen = self._values.ranges[spec.name].by_channel()
        form = format_for(seen.low, seen.high, self._values.widths.inputs, alike=False)
        value = self._values.request(form)
        return value, Port(spec.name, spec.sizes[1:], *_flat(form))

    def _left_to_the_reader(self, node: onnx.NodeProto, results: set[str]) -> bool:
        """Whether a node is a softmax at the very end, which doesn't change the largest answer."""
        name = node.output[0]
        ends = name in results and name not in self._values.readers
        return ends and node.op_type in ("Softmax", "LogSoftmax")

    def _apply(self, node: onnx.NodeProto) -> None:
        if not any(name in self._values.tensors for name in node.input):
            self._fold(node)
            return
        if node.domain == "ai.onnx.ml" and node.op_type in TREES:
            self._grow(node)
            return
        make = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if make is None:
            raise NotCovered(
                f"the operator {node.op_type} (node {node.name!r}) has no fixed-point form; "
                f"these operators have one: {', '.join(sorted(OPERATORS))}, and a softmax at the "
                "end"
            )
        try:
            self._values.tensors[node.output[0]] = make(self._values, node)
        except CandidateError:
            raise
        except Exception as error:
            raise CandidateError(
                f"the operator {node.op_type} (node {node.name!r}) has no fixed-point form with these "
                f"settings: {error or type(error).__name__}"
            ) from error

    def _grow(self, node: onnx.NodeProto) -> None:
        """Turn trees into comparisons; a classifier's label is left to the reader of the sums."""
        ensemble = trees.read(node)
        given = self._values.value(node.input[0])
        sums = ensemble.sums(
            list(np.ravel(given._vars)), self._values.widths.of(node.name)[0], self._values.hardware
        )
        value = self._values.array(np.array([sums], dtype=object))
        if node.op_type == "TreeEnsembleRegressor":
            self._values.tensors[node.output[0]] = value
            return
        two = len(ensemble.classes) > len(sums)
        transform = {"LOGISTIC": "logistic", "SOFTMAX": "softmax", "NONE": "two"}[
            ensemble.transform
        ]
        if not two and transform != "softmax":
            transform = "none"
            if ensemble.transform == "LOGISTIC":
                raise NotCovered(f"a logistic of each class (node {node.name!r}) isn't supported")
        meet = 0.5 if ensemble.positive else 0.0
        label: dict[str, Any] = {"epilogue": "label", "classes": ensemble.classes, "meet": meet}
        scores: dict[str, Any] = {"epilogue": transform}
        for name, ending in zip(node.output, (label, scores), strict=True):
            self._values.tensors[name], self._endings[name] = value, ending
            if any(name in reader.input for reader in self._graph.node):
                raise NotCovered(
                    f"the output of trees (node {node.name!r}) has to be the model's output"
                )

    def _fold(self, node: onnx.NodeProto) -> None:
        """Evaluate a node whose inputs are all constants."""
        from onnx.reference import ReferenceEvaluator

        try:
            given = {name: self._values.constants[name] for name in node.input if name}
            found = ReferenceEvaluator(node).run(None, given)
        except Exception as error:
            raise CandidateError(
                f"the constant operator {node.op_type} (node {node.name!r}) can't be evaluated"
            ) from error
        self._values.constants.update(zip(node.output, map(np.asarray, found), strict=False))


def _flat(form: Format) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    signed, integer, fraction = (
        tuple(int(v) for v in np.ravel(part)) for part in (form.signed, form.integer, form.fraction)
    )
    return signed, integer, fraction


def _port(name: str, value: Any, ending: Mapping[str, Any]) -> Port:
    return Port(name, tuple(value.shape[1:]), *_flat(Format(*value.kif)), **ending)


def _settled(ports: Sequence[Port], logic: Any) -> list[Port]:
    """Give output ports the formats that the finished program has."""
    from da4ml.types import minimal_kif

    forms, found, start = [minimal_kif(q) for q in logic.out_qint], [], 0
    for port in ports:
        own = forms[start : start + port.size]
        start += port.size
        signed, integer, fraction = (tuple(int(v) for v in part) for part in zip(*own, strict=True))
        found.append(replace(port, signed=signed, integer=integer, fraction=fraction))
    return found
