"""TFLite files with a custom operator, whose settings LiteRT reads as it opens a file."""

from __future__ import annotations

import flatbuffers


def with_custom_operator(data: bytes, settings: bytes) -> bytes:
    """Return a TFLite file whose first operator is a custom one of LiteRT's own, with settings as FlexBuffers."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data)
    code, operator = model.operatorCodes[0], model.subgraphs[0].operators[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = "Mfcc"
    operator.customOptions = [*settings]
    operator.builtinOptions, operator.builtinOptionsType = None, schema.BuiltinOptions.NONE
    return packed(model)


def packed(model: object) -> bytes:
    """Return the bytes of a `ModelT`."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")  # type: ignore[attr-defined]
    return bytes(builder.Output())
