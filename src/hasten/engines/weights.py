"""Where tensors lie in the files of models, so that each is packed as the numbers that it is.

Only a hint is needed: whatever lies where, a packed bundle gives every byte back. So a file that can't be
read as its name says has no tensors here, and is packed as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hasten.errors import IntegrityError

_ONNX_TYPES = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    4: ("uint16", 2),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    16: ("bfloat16", 2),
    17: ("float8_e4m3fn", 1),
    19: ("float8_e5m2", 1),
}
"""Element types by their number in TensorProto.DataType: name, and size in bytes."""
_IR_TYPES = {
    "f64": ("float64", 8),
    "f32": ("float32", 4),
    "f16": ("float16", 2),
    "bf16": ("bfloat16", 2),
    "i64": ("int64", 8),
    "i32": ("int32", 4),
    "i16": ("int16", 2),
    "i8": ("int8", 1),
    "u8": ("uint8", 1),
    "boolean": ("bool", 1),
}
"""Element types by their name in OpenVINO's IR: name, and size in bytes."""
_MOST_GRAPHS = 8
_EXTERNAL = 1


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that hold a tensor, its elements in order, little-endian.

    Attributes:
        name: Name of the tensor in the model.
        dtype: Type of an element by its name in numpy or ml_dtypes.
        shape: Size of each axis.
        width: Size of an element in bytes.
        file: File that holds it.
        offset: Place of the first byte.
        length: Number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: int
    file: Path
    offset: int
    length: int


def stretches_in(files: Sequence[Path]) -> Iterator[Stretch]:
    """Yield the tensors in a model's files, by what the files' names end in: ONNX, OpenVINO's IR.

    Args:
        files: The file that an engine opens, or several, and those beside.
    """
    for file in files:
        try:
            if file.suffix == ".onnx":
                found = list(_in_onnx(file))
            elif file.suffix == ".xml" and file.with_suffix(".bin") in files:
                found = list(_in_ir(file))
            else:
                continue
        except (IntegrityError, OSError, ValueError, SyntaxError):  # the last is of XML, too
            continue
        yield from (one for one in found if one.length == _elements(one) * one.width)


def _elements(stretch: Stretch) -> int:
    """Return how many elements the shape has; 0 where there can't be so many, since a file may state a million axes."""
    count = 1
    for size in stretch.shape:
        count *= size
        if not 0 < count <= stretch.length:
            return 0
    return count


def _in_ir(file: Path) -> Iterator[Stretch]:
    """Yield the constants of an IR, which lie in the file of weights."""
    from xml.etree import ElementTree  # a runtime alone doesn't need it

    weights = file.with_suffix(".bin")
    size = weights.stat().st_size
    for layer in ElementTree.parse(file).getroot().iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        known = _IR_TYPES.get(data.get("element_type", ""))
        shape = tuple(int(part) for part in data.get("shape", "").split(",") if part.strip())
        offset, length = int(data.get("offset", "0")), int(data.get("size", "0"))
        if known and offset >= 0 and 0 < length <= size - offset:
            yield Stretch(layer.get("name", ""), known[0], shape, known[1], weights, offset, length)


def _in_onnx(file: Path) -> Iterator[Stretch]:
    """Yield the tensors of an ONNX file: weights, and constants within nodes.

    Source: onnx.proto; https://protobuf.dev/programming-guides/encoding.
    """
    data = memoryview(file.read_bytes())
    for number, begin, end in _fields(data, 0, len(data)):
        if number == 7:
            yield from _in_graph(data, begin, end, file, 1)


def _in_graph(data: memoryview, begin: int, end: int, file: Path, deep: int) -> Iterator[Stretch]:
    if deep > _MOST_GRAPHS:
        return
    for number, first, last in _fields(data, begin, end):
        if number == 5:
            yield from _tensor(data, first, last, file, "")
        elif number == 1:
            for kind, one, two in _fields(data, first, last):
                if kind == 5:
                    yield from _in_attribute(data, one, two, file, deep)


def _in_attribute(
    data: memoryview, begin: int, end: int, file: Path, deep: int
) -> Iterator[Stretch]:
    for number, first, last in _fields(data, begin, end):
        if number == 5:
            yield from _tensor(data, first, last, file, "constant")
        elif number in (6, 11):
            yield from _in_graph(data, first, last, file, deep + 1)


def _tensor(data: memoryview, begin: int, end: int, file: Path, name: str) -> Iterator[Stretch]:
    """Yield where a TensorProto's numbers lie; nothing if they aren't there as plain bytes."""
    shape: list[int] = []
    external: dict[str, str] = {}
    kind, numbers, where = 0, (0, 0), 0
    for number, first, last in _fields(data, begin, end):
        if number == 1:
            shape += _integers(data, first, last)
        elif number == 2:
            kind = next(_integers(data, first, last), 0)
        elif number == 8:
            name = bytes(data[first:last]).decode(errors="replace") or name
        elif number == 9 or (number, kind) in ((4, 1), (10, 11)):
            numbers = (first, last)
        elif number == 13:
            texts = [bytes(data[one:two]).decode() for _, one, two in _fields(data, first, last)]
            external.update([(texts[0], texts[-1])] if texts else [])
        elif number == 14:
            where = next(_integers(data, first, last), 0)
    if kind not in _ONNX_TYPES:
        return
    dtype, width = _ONNX_TYPES[kind]
    if where == _EXTERNAL:
        beside = PurePosixPath(external.get("location", ""))
        if beside.is_absolute() or ".." in beside.parts:
            return
        file = file.parent / beside
        begin, size = int(external.get("offset", "0")), file.stat().st_size
        numbers = (begin, begin + int(external.get("length", str(size - begin))))
        if not 0 <= begin <= numbers[1] <= size:
            return
    if numbers[1] > numbers[0]:
        yield Stretch(name, dtype, tuple(shape), width, file, numbers[0], numbers[1] - numbers[0])


def _fields(data: memoryview, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each field of a protobuf message, and where its value begins and ends.

    Raises:
        IntegrityError: the bytes are no protobuf message.
    """
    while begin < end:
        key, begin = _varint(data, begin, end)
        kind = key & 7
        if kind == 0:
            after = _varint(data, begin, end)[1]
        elif kind in (1, 5):
            after = begin + (8 if kind == 1 else 4)
        elif kind == 2:
            length, begin = _varint(data, begin, end)
            after = begin + length
        else:
            raise IntegrityError(f"a field of kind {kind}")
        if after > end:
            raise IntegrityError("a field ends outside its message")
        yield key >> 3, begin, after
        begin = after


def _varint(data: memoryview, begin: int, end: int) -> tuple[int, int]:
    """Return an integer that takes as many bytes as it needs, and where the next field begins."""
    value = 0
    for place in range(begin, min(end, begin + 10)):
        value |= (data[place] & 0x7F) << (7 * (place - begin))
        if data[place] < 0x80:
            return value, place + 1
    raise IntegrityError("an integer doesn't end")


def _integers(data: memoryview, begin: int, end: int) -> Iterator[int]:
    while begin < end:
        value, begin = _varint(data, begin, end)
        yield value
