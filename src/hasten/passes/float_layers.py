"""Return single layers of a quantized model to float: their weights, bias and inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Format, Model, libraries
from hasten.core.target import Target
from hasten.core.telemetry import telemetry_off
from hasten.core.words import in_float
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped
from hasten.passes.onnx_files import check_nodes, read_onnx
from hasten.passes.openvino_graphs import PRODUCTS, bias_of, converted, operations_of
from hasten.passes.silence import first_line, silenced

_SHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Transpose"})
"""Operations that a rounding may precede as well as follow."""


@dataclass(frozen=True)
class FloatLayers(Pass):
    """Return layers to float in the IR that a quantizer wrote.

    This takes one second, while quantizing again takes many. The biases of other layers stay as
    the quantizer corrected them. Layers in float run in the engine's own float precision.

    Attributes:
        nodes: Names of the layers' ONNX nodes in the original model.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"openvino"})
    gives: ClassVar[Format] = "openvino"

    nodes: tuple[str, ...] = ()

    @property
    def keep_float(self) -> tuple[str, ...]:
        """Names of the ONNX nodes to return to float."""
        return self.nodes

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield nothing, since the search chooses the layers."""
        yield from ()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        if model.origin is None:
            raise CandidateError("can't return layers to float: the original model is missing")
        if not self.nodes:
            raise Skipped("nothing to return to float: no layer is named")
        proto = read_onnx(model.origin, weights=False)
        check_nodes(proto, self.nodes)
        path = workdir / "mixed.xml"
        try:
            with silenced(), telemetry_off():
                import openvino

                core = openvino.Core()
                for library in libraries(model.custom_ops, "create_extensions"):
                    core.add_extension(str(library))
                graph = core.read_model(str(model.path))
                source = converted(model.origin)
                names: set[str] = set()
                for node in self.nodes:
                    with contextlib.suppress(CandidateError):  # merged into one that stays in int8
                        names.update(operations_of(source, proto, (node,)))
                if not _give_back(graph, source, names):
                    raise CandidateError(f"none of the {len(self.nodes)} layers was in int8")
                graph.validate_nodes_and_infer_types()
                openvino.save_model(graph, path, compress_to_fp16=False)
        except HastenError:
            raise
        except Exception as error:
            raise CandidateError(f"can't return layers to float: {first_line(error)}") from error
        return replace(model, path=path, files=(path.with_suffix(".bin"),))

    def words(self) -> str:
        return in_float(self.nodes)


def _give_back(graph: Any, source: Any, names: set[str]) -> int:
    """Restore products from the original, and return how many of them were in int8.

    Args:
        graph: Quantized graph, changed in place.
        source: Original graph.
        names: OpenVINO's names for the operations to restore.
    """
    originals = {operation.get_friendly_name(): operation for operation in source.get_ordered_ops()}
    done = 0
    for operation in graph.get_ordered_ops():
        name = operation.get_friendly_name()
        if name not in names or operation.get_type_name() not in PRODUCTS:
            continue
        changed = [_give_input_back(operation, originals[name], i) for i in range(2)]
        done += any(changed)
        _own_bias(operation, originals[name])
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() == "FakeQuantize" and not _serves_int8(operation):
            for target in operation.output(0).get_target_inputs():
                target.replace_source_output(operation.input_value(0))
    return done


def _serves_int8(rounding: Any) -> bool:
    """Return whether a rounding feeds a product in int8, directly or through other operations."""
    left, seen = [rounding], set()
    while left:
        for target in left.pop().output(0).get_target_inputs():
            node = target.get_node()
            name = node.get_friendly_name()
            if node.get_type_name() in PRODUCTS:
                if _in_int8(node):
                    return True
            elif name not in seen and node.get_type_name() != "FakeQuantize":
                seen.add(name)
                left += [node] if node.get_output_size() else []
    return False


def _in_int8(product: Any) -> bool:
    """Return whether a product's second input is rounded: int8 weights, or rounded activations."""
    node = product.input_value(1).get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", *_SHAPES):
        node = node.input_value(0).get_node()
    kind = str(node.get_element_type().get_type_name())
    return str(node.get_type_name()) == "FakeQuantize" or kind in ("i8", "u8")


def _give_input_back(operation: Any, original: Any, position: int) -> bool:
    """Restore the source of one input of a product, and return whether the input was in int8.

    Raises:
        CandidateError: the original's source isn't found in the quantized graph.
    """
    import openvino.opset13 as operators

    feeds = original.input_value(position)
    values = _constant(feeds)
    if values is not None:
        was = bool(operation.input_value(position).get_node().get_type_name() != "Constant")
        operation.input(position).replace_source_output(operators.constant(values).output(0))
        return was
    was = _without_rounding(operation.input(position))
    wanted = feeds.get_node().get_friendly_name()
    source = operation.input_value(position)
    if source.get_node().get_friendly_name() != wanted and source.get_node().get_input_size():
        # SmoothQuant divides activations by the factors that it multiplied weights by.
        source = source.get_node().input_value(0)
        operation.input(position).replace_source_output(source)
    if source.get_node().get_friendly_name() != wanted:
        raise CandidateError(
            f"can't find the input of {original.get_friendly_name()!r} after quantization"
        )
    return was


def _without_rounding(where: Any) -> bool:
    """Remove the rounding before an input, even if shape operations are in between.

    Returns:
        Whether there was a rounding.
    """
    while True:
        node = where.get_source_output().get_node()
        if node.get_type_name() == "FakeQuantize":
            where.replace_source_output(node.input_value(0))
            return True
        alone = node.get_output_size() == 1 and len(node.output(0).get_target_inputs()) == 1
        if node.get_type_name() not in _SHAPES or not alone:
            return False
        where = node.input(0)


def _constant(output: Any) -> Any:
    """Return the values of an output that depends on constants alone; None for any other."""
    import openvino

    left, seen = [output.get_node()], 0
    while left:
        node = left.pop()
        seen += 1
        if node.get_type_name() in ("Parameter", "ReadValue") or seen > 16:
            return None
        left += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    if output.get_node().get_type_name() == "Constant":
        return output.get_node().get_data()
    model = openvino.Model([openvino.opset13.result(output)], [], "constant")
    return openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0].copy()


def _own_bias(operation: Any, original: Any) -> None:
    """Restore the bias of the addition after a product, from before its correction."""
    import openvino.opset13 as operators

    before, after = bias_of(original), bias_of(operation)
    if before is None or after is None:
        return
    addition, position = after
    values = before[0].input_value(before[1]).get_node().get_data()
    addition.input(position).replace_source_output(operators.constant(values).output(0))
