"""Writer of a .tflite file: tensors, operators, and the names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import CandidateError, NotCovered

SIGNATURE = "serving_default"
_TYPES = {
    "float32": "FLOAT32",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}
_LIMIT_BYTES = 2**31 - 2**20
_VERSIONS = {"BROADCAST_TO": 2}
"""First version of an operator that the runtime knows, where it isn't 1."""


class Writer:
    """Writer of one graph; tensors go by their numbers, from 0."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated

        self.schema: Any = schema_py_generated
        self._model = self.schema.ModelT()
        self._model.version = 3
        self._model.description = "hasten"
        self._model.operatorCodes = []
        self._model.buffers = [self.schema.BufferT()]
        self._graph = self.schema.SubGraphT()
        self._graph.name = "main"
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._size_bytes = 0

    def tensor(
        self, name: str, dtype: np.dtype[Any], shape: Sequence[int], *, open_batch: bool = False
    ) -> int:
        """Add a tensor that an operator computes.

        Raises:
            CandidateError: the element type isn't supported.
        """
        if dtype.name not in _TYPES:
            raise NotCovered(f"LiteRT takes no {dtype.name} tensors, but {name!r} is one")
        tensor = self.schema.TensorT()
        tensor.name = self._unique(name)
        tensor.type = getattr(self.schema.TensorType, _TYPES[dtype.name])
        tensor.shape = [int(size) for size in shape]
        if open_batch:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
        tensor.buffer = 0
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def constant(self, array: Array, name: str) -> int:
        """Add a tensor with constant values; small equal tensors are shared."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.name, array.shape, array.tobytes() if array.size <= 16 else b"")
        if array.size <= 16 and key in self._constants:
            return self._constants[key]
        index = self.tensor(name, array.dtype, array.shape)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self._size_bytes += array.nbytes
        self._graph.tensors[index].buffer = len(self._model.buffers)
        self._model.buffers.append(buffer)
        if array.size <= 16:
            self._constants[key] = index
        return index

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None
    ) -> None:
        """Add an operator by its name in the format; the input -1 means one that isn't given."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(code)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
        self._graph.operators.append(operator)

    def reads(self, tensor: int) -> bool:
        """Whether a tensor is constant, or an operator added so far reads it."""
        fixed = self._graph.tensors[tensor].buffer != 0
        return fixed or any(tensor in operator.inputs for operator in self._graph.operators)

    def options(self, kind: str, **fields: Any) -> Any:
        """Return an operator's options: "Conv2D" with padding, strideW, ..."""
        made = getattr(self.schema, f"{kind}OptionsT")()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def finish(
        self, inputs: Iterable[tuple[str, int]], outputs: Iterable[tuple[str, int]]
    ) -> bytes:
        """Name the inputs and outputs, and return the file's bytes.

        Raises:
            CandidateError: the file would exceed 2 GiB.
        """
        import flatbuffers

        if self._size_bytes > _LIMIT_BYTES:
            raise CandidateError("a .tflite file has at most 2 GiB, and the weights are larger")
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs = [self._mapped(name, index) for name, index in inputs]
        signature.outputs = [self._mapped(name, index) for name, index in outputs]
        self._graph.inputs = [entry.tensorIndex for entry in signature.inputs]
        self._graph.outputs = [entry.tensorIndex for entry in signature.outputs]
        self._model.subgraphs = [self._graph]
        self._model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _mapped(self, name: str, index: int) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        return entry

    def _code(self, name: str) -> int:
        if name not in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = _VERSIONS.get(name, 1)
            self._codes[name] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[name]

    def _unique(self, name: str) -> str:
        """Return a unique name without semicolons, at which quantizers split lists of names."""
        name = name.replace(";", ",")
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else self._unique(f"{name}:{count}")
