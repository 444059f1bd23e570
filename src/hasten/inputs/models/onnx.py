"""Loading of an .onnx file, with or without external data."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hasten.core.extras import missing_extra
from hasten.core.model import Model, is_file_name
from hasten.core.onnx_functions import check_functions
from hasten.core.presence import is_folder, is_there
from hasten.core.protobufs import parse_errors
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError, IntegrityError
from hasten.inputs.models.foreign import check_no_device, no_model_folder, no_onnx_file
from hasten.inputs.models.sizing import named_by_value
from hasten.inputs.models.zip_maps import without_maps

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT_BYTES = 2**31 - 1
UNKNOWN_RANK = "..."
_MOST_DIMENSIONS = 64
"""Dimensions that an array of numpy has at most; the product of more sizes would be a number of many digits."""


def load(path: Path, custom_ops: Sequence[Path] = (), workdir: Path | None = None) -> Model:
    """Read the inputs and outputs of an ONNX file; its weights stay on disk.

    Scores that the file gives as mappings (ZipMap) are described as tensors.

    Args:
        path: Path of the file, of any name; its content decides.
        custom_ops: Libraries with the user's own operators.
        workdir: Folder for a changed file, which is written where the file gives mappings; without a folder, the
            returned model still has the file's own path, so that no engine may run it.

    Returns:
        Model whose open dimensions have the file's names, or "?" where it gives none. An output
        whose rank the file leaves out has the shape `("...",)`. First axes of outputs whose size depends
        on a request's values are named `BY_VALUE`.

    Raises:
        InputError: there is no such file, it is a pipe or a device, it isn't ONNX, its external data is missing or cut short,
            or an input or output isn't a tensor of numbers of a type that NumPy has.
    """
    for file in (path, *custom_ops):
        if not is_there(file):
            raise InputError(f"no such file: {file}")
        check_no_device(file)
    path = path.absolute()
    proto = read(path)
    mapped = without_maps(proto)
    files = tuple(_external_files(proto, path))
    _infer_missing_outputs(proto)
    graph = proto.graph
    constants = {t.name for t in graph.initializer} | {
        t.values.name for t in graph.sparse_initializer
    }
    spec = partial(_spec, path=path, classical=_is_classical(graph))
    inputs = tuple(spec("input", i) for i in graph.input if i.name not in constants)
    outputs = tuple(spec("output", o) for o in graph.output)
    if not inputs:
        raise InputError(f"{path} has no inputs: there is nothing to make faster")
    if not outputs:
        raise InputError(f"{path} has no outputs: there is nothing to compare")
    model = Model(
        path=path,
        format="onnx",
        inputs=inputs,
        outputs=named_by_value(proto, inputs, outputs),
        files=files,
        custom_ops=tuple(library.absolute() for library in custom_ops),
    )
    if mapped and workdir is not None:
        folder = workdir / "tensors"  # so that the file keeps its name, and is never replaced
        folder.mkdir(exist_ok=True)
        return write_changed(proto, model, folder / path.name)
    return model


def read(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its external data.

    Raises:
        InputError: the file isn't ONNX, or is larger than a protobuf file can be, or is a pipe or a device.
    """
    try:
        import onnx

        damaged = parse_errors()
    except ImportError as error:
        raise missing_extra("an ONNX model", "optimize") from error
    check_no_device(path)
    if is_folder(path):
        raise InputError(no_model_folder(path))
    try:
        with path.open("rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs")
        if pointer:
            raise InputError(f"{path} is a Git LFS pointer, not the model: run `git lfs pull`")
        if path.stat().st_size > PROTOBUF_LIMIT_BYTES:
            raise InputError(
                f"{path} is larger than the 2 GiB that a protobuf file can be: "
                "save the model with its weights as external data"
            )
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    except damaged as error:
        raise InputError(no_onnx_file(path)) from error
    if not proto.ir_version or not proto.HasField("graph") or not proto.opset_import:
        raise InputError(no_onnx_file(path))
    for name in _names(proto.graph):
        if not isinstance(name, str):
            raise InputError(f"{path} is damaged: the name {name!r:.100} in it isn't text")
    if wrong := _wrong_sets(proto):
        raise InputError(f"{path} is damaged: {wrong}")
    if proto.functions:
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                check_functions(data)
        except IntegrityError as error:
            raise InputError(f"{path} can't be used: {error}") from error
    if cut := _cut_short(proto):
        raise InputError(f"{path} is damaged: {cut}")
    for part in (proto.graph, *proto.functions):
        for tensor in _tensors(part):
            if wrong := _wrong_dimensions(tensor.dims):
                raise InputError(f"{path} is damaged: the tensor {tensor.name!r:.100} has {wrong}")
    return proto


def _wrong_sets(proto: onnx.ModelProto) -> str:
    """Say which operator set has no possible version; "" where all have one."""
    for part in (proto, *proto.functions):
        for one in part.opset_import:
            if not 0 <= one.version < 2**31:
                return f"version {one.version} of the operator set {(one.domain or 'ai.onnx')!r:.100} isn't possible"
    return ""


def _cut_short(proto: onnx.ModelProto) -> str:
    """Say which node has fewer inputs or outputs than its operator needs; "" where none has."""
    import onnx

    own = ("", "ai.onnx")
    version = max((one.version for one in proto.opset_import if one.domain in own), default=1)
    least = {one.name: (0, 0) for one in proto.functions}  # which may be called as an operator

    def found(graph: onnx.GraphProto) -> Iterator[str]:
        for node in graph.node:
            kind = node.op_type
            if node.domain in own and kind not in least:
                least[kind] = 0, 0
                with contextlib.suppress(onnx.defs.SchemaError):  # one that an engine may know
                    schema = onnx.defs.get_schema(kind, version, "")
                    least[kind] = schema.min_input, schema.min_output
            inputs, outputs = least[kind] if node.domain in own else (0, 0)
            if len(node.input) < inputs or len(node.output) < outputs:
                yield (
                    f"a node {kind} has {len(node.input)} inputs and {len(node.output)} outputs; it needs {inputs} "
                    f"and {outputs}"
                )
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from found(attribute.g)
                for inner in attribute.graphs:
                    yield from found(inner)

    return next(found(proto.graph), "")


def _wrong_dimensions(dims: Sequence[object]) -> str:
    """Say what no tensor's dimensions are; "" for possible ones."""
    if len(dims) > _MOST_DIMENSIONS:
        return f"{len(dims)} dimensions; {_MOST_DIMENSIONS} are the most"
    for dim in dims:
        if isinstance(dim, int) and dim < 0:
            return f"a dimension of the size {dim}"
    return ""


def write_changed(proto: onnx.ModelProto, source: Model, written: Path) -> Model:
    """Write a changed graph, with copies of the weights outside of the file.

    Hard links don't serve, because onnx and runtimes refuse external data that has several names.

    Args:
        proto: Changed graph, read without its external data.
        source: Model that it was read from.
        written: Path of the new file.

    Raises:
        InputError: the file can't be written.
    """
    try:
        written.write_bytes(proto.SerializeToString())
        for file in source.files:
            beside = written.parent / file.relative_to(source.path.parent)
            if beside != file:
                beside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, beside)
    except OSError as error:
        raise InputError(f"can't write {written}: {error.strerror or error}") from error
    return load(written, source.custom_ops)


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Yield the names in a graph and in its subgraphs; the protobuf library gives those that aren't UTF-8 as bytes."""
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _names(inner)


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and of its subgraphs."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    own = getattr(graph, "attribute_proto", ())  # the defaults of a function's attributes
    for attribute in (*own, *(one for node in graph.node for one in node.attribute)):
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        if attribute.HasField("g"):
            yield from _tensors(attribute.g)
        yield from attribute.tensors
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
        for inner in attribute.graphs:
            yield from _tensors(inner)


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the files that hold external data, in the order of first use."""
    import onnx

    sizes: dict[Path, int] = {}
    for part in (proto.graph, *proto.functions):
        for tensor in _tensors(part):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = _inside(path, tensor.name, entries.get("location", ""))
            if file not in sizes:
                if not file.is_file():
                    raise InputError(
                        f"{path} keeps its weights in {file}, which is missing: put it next to the model"
                    )
                sizes[file] = file.stat().st_size
            _check_extent(tensor, entries, file, sizes[file])
    return list(sizes)


def _inside(path: Path, tensor: str, location: str | bytes) -> Path:
    """Return the path of external data, which must lie in the model's folder, also where links lead.

    Where the model itself is a link, as in Hugging Face's cache, its data may lie beside what it leads to.
    """
    if not isinstance(location, str) or not is_file_name(location):
        raise InputError(
            f"{path}: the data of {tensor!r} is said to be at {location!r:.100}, which isn't the name of a "
            "file; save the model with its weights in a file beside it"
        )
    relative = PurePosixPath(location)
    if not location or relative.is_absolute() or ".." in relative.parts:
        raise InputError(
            f"{path}: the data of {tensor!r} is said to be at {location!r}; "
            "external data must lie in the model's folder"
        )
    file = path.parent / relative
    real = Path(os.path.realpath(file))  # `Path.resolve` would raise on circular links
    folders = (os.path.realpath(path.parent), Path(os.path.realpath(path)).parent)
    if not any(real.is_relative_to(folder) for folder in folders):
        raise InputError(
            f"{path}: the data of {tensor!r} is said to be at {location!r}, a link to {real}; "
            "external data must lie in the model's folder: copy it there if you trust the model"
        )
    return file


def _check_extent(
    tensor: onnx.TensorProto, entries: dict[str, str], file: Path, size_bytes: int
) -> None:
    """Check that a tensor's data ends within its file."""
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else _least_bytes(tensor)
    except ValueError as error:
        raise InputError(
            f"{file}: the offset or length of {tensor.name!r} in it isn't a number"
        ) from error
    end = offset + length
    if offset < 0 or length < 0 or end > size_bytes:
        shown = f"at byte {end}" if abs(end) < 1 << 63 else "past the largest file"
        raise InputError(
            f"{file} is cut short: {tensor.name!r} ends {shown}, the file at {size_bytes}"
        )


def _least_bytes(tensor: onnx.TensorProto) -> int:
    """Return the least number of bytes that a tensor takes, with packed types counted as packed."""
    import onnx

    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        return 0
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    packing = 4 if name.endswith("INT2") else 2 if "INT4" in name or "FLOAT4" in name else 1
    return int(-(-math.prod(tensor.dims) * itemsize // packing))


def _infer_missing_outputs(proto: onnx.ModelProto) -> None:
    """Fill in types and shapes of outputs that the file leaves out, where inference can tell."""
    import onnx

    def complete(value: onnx.ValueInfoProto) -> bool:
        kind = value.type
        return kind.WhichOneof("value") not in (None, "tensor_type") or (
            kind.tensor_type.elem_type != onnx.TensorProto.UNDEFINED
            and kind.tensor_type.HasField("shape")
        )

    if all(complete(output) for output in proto.graph.output):
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError):
        return  # An engine will report the fault later, and name the node.
    for mine, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(found)


def _is_classical(graph: onnx.GraphProto) -> bool:
    """Whether a graph comes from a library of models of rows, and doesn't read words of longer texts."""
    classical = any(node.domain == "ai.onnx.ml" for node in graph.node)
    return classical and not any(node.op_type == "TfIdfVectorizer" for node in graph.node)


def _fitted(classical: bool) -> str:
    """Say what else can be given for a file of classical operators; "" for any other file."""
    if not classical:
        return ""
    return (
        "; or give the fitted scikit-learn pipeline or booster itself, as my.py:model or in Python: its columns and "
        "classes may be texts"
    )


def _spec(
    role: str, value: onnx.ValueInfoProto, path: Path, *, classical: bool = False
) -> TensorSpec:
    """Return the TensorSpec of an input or output, of a file that may have operators of `ai.onnx.ml`."""
    import onnx

    used = "given" if role == "input" else "compared"
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        words = kind.removesuffix("_type").replace("_", " ")
        raise InputError(
            f"{path}: {role} {value.name!r} is a{'n' * words.startswith(('o', 'i'))} {words}, and only tensors "
            f"can be {used}: export the model with {role}s that are tensors in its place, or without it"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise InputError(
            f"{path}: {role} {value.name!r} has no element type; save the model with it"
        )
    if tensor.elem_type == onnx.TensorProto.STRING:
        hint = (
            "export the model with numbers in its place, or without it"
            if role == "output"
            else "turn text into numbers before the model, and export only the part after that"
        )
        raise InputError(
            f"{path}: {role} {value.name!r} contains text; only numbers are supported: {hint}{_fitted(classical)}"
        )
    try:
        found = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as error:
        raise InputError(
            f"{path}: {role} {value.name!r} has the element type {tensor.elem_type}, "
            "which this version of onnx doesn't know"
        ) from error
    dtype = found.name
    if found.isbuiltin != 1:  # a type of ml_dtypes, which no engine takes or gives as an array
        usual = "int8" if dtype.startswith("int") else "uint8" if "int" in dtype else "float32"
        raise InputError(
            f"{path}: {role} {value.name!r} is {dtype}, which NumPy doesn't have, so it can't be {used}: export "
            f"the model with {usual} {role}s, and let it cast them itself"
        )
    if wrong := _wrong_dimensions(tensor.shape.dim):
        raise InputError(f"{path}: {role} {value.name!r} has {wrong}")
    if tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, tuple(_size(dim) for dim in tensor.shape.dim))
    if role == "input":
        raise InputError(f"{path}: input {value.name!r} has no shape; save the model with it")
    return TensorSpec(value.name, dtype, (UNKNOWN_RANK,))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """Return the size of a dimension, or the name of an open one."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or "?"
