"""Files of `torch.jit.save`, exported by torch's exporter for TorchScript (extra `torch`)."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hasten.core.archives import excess
from hasten.core.extras import missing_extra
from hasten.core.known_operators import is_known
from hasten.core.memory_folder import content_of
from hasten.core.model import Model
from hasten.core.silence import silenced
from hasten.core.tensors import Array
from hasten.errors import InputError, told
from hasten.inputs.models import frozen, onnx
from hasten.inputs.models.torch import (
    CHECKED_BATCHES,
    IR_VERSION,
    RELATIVE_TOLERANCE,
    flat_outputs,
)
from hasten.inputs.models.torch_inputs import batch_of, check_dtypes, open_axes, ordered

SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")
OPSET = 17
_APART = re.compile(r'"(?:[^"\\\n]|\\[\s\S])*"|#[^\n]*')
"""Pattern of a string or a comment, as TorchScript's lexer reads them."""
_NO_NAME = re.compile(
    r'"(?=\d|[^"]*(?:[^\w"\\]|\\[23]))(?:[^"\\\n]|\\[23][0-7]{2})*"',
    re.ASCII,
)
"""Pattern of a string that can't be the name of an operator. TorchScript writes `getattr` for such names alone."""
_GETTING = re.compile(r'\bgetattr\((?:[\w.]+|\([\w.]+\)(?:\.\w+)*), "0"\)', re.ASCII)
"""Pattern of `getattr` with such a string, each of which is "0" here."""
_NAMES = re.compile(
    r"(?<![\w.])(?:\d\w*(?:\.\w*)?|__torch__\.(?!torch\.classes\.(?!quantized\.))[\w.]+|"
    r"(?P<outer>__torch__\b[\w.]*|(?:torch|ops)\b(?! : )[\w.]*))"
    r"|\.(?P<inner>\w*)|(?P<odd>\"{3}|['\\]|\bunchecked_cast\b(?!\(\w+(?:\[[\w\[\], ()]*\])?, ))",
    re.ASCII,
)
"""Pattern of numbers, of the file's own types and functions, of names of operators and torch's own classes, of names
after other dots, and of what a plain module doesn't have: signs by which a string could end elsewhere than it seems to,
and casts to a class, after which TorchScript reads an object as if it had the fields of that class."""
_OPERATOR = re.compile(
    r"(?:torch|ops\.aten)\.(?P<aten>\w+)|"
    r"ops\.prim\.(?:NumToTensor|Print|RaiseException|abs|data|device|dtype|is_\w+|itemsize|layout|max|min|name|nbytes|"
    r"requires_grad|type|unchecked_unwrap_optional)|"
    r"ops\.quantized\.(?:(?:add|batch_norm|cat|conv|linear|mul)\w*|celu|clamp|dropout|elu|group_norm|hardswish|"
    r"instance_norm|layer_norm|leaky_relu|matmul|prelu|relu6|sigmoid|softmax|threshold)|"
    r"ops\.torchvision\.nms",
    re.ASCII,
)
"""Pattern of operators that a file may call, if that of aten is a known one."""
_OTHER_CLASS = re.compile(r"__torch__\.torch\.classes\.(?!quantized\.)")
"""Pattern of the beginning of torch's own classes that no plain module has."""


_PART = re.compile(r'"(?:[^"\\\n]|\\[\s\S])*"|#[^\n]*\n?|[\w.]+|[^\w\s]|\n(?:[ \t]*\n)*')
"""Pattern of a part of TorchScript: a string, a comment with the end of its line, a name, a single character, or the end
of a line with the empty ones after it."""
_MOST_PARTS = 1_000
"""Largest number of parts of a statement between two commas; torch's parser recurses with each of them."""


_ELEMENT_BYTES = {
    **dict.fromkeys(("BFloat16Storage", "HalfStorage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
"""Size of an element of each storage; of others, it is a byte."""
_UNASKED_BYTES = 64 << 20
"""Bytes that a tensor may claim beyond what the file has, for masks that a module expands."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript: unlike a checkpoint's, it holds code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except Exception:  # zipfile raises exceptions of many types
        return False


def load(path: Path, *, trust_code: bool = False) -> Any:
    """Load a file that `torch.jit.save` wrote; its code runs in TorchScript's own interpreter.

    Args:
        path: Path of the file.
        trust_code: Whether that code may call any operator, such as those that open files.

    Raises:
        InputError: torch isn't installed, the file can't be loaded, or its code could touch other files, or memory
            outside its tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("a TorchScript file", "torch") from error
    try:
        with silenced():
            source: Any = str(path)
            if not trust_code:
                content = content_of(path)  # once: what is checked is what is loaded
                _check_touches_nothing(path, content)
                source = io.BytesIO(content)
            module = torch.jit.load(source, map_location="cpu")  # type: ignore[no-untyped-call]
            if not trust_code:
                _check_parts(path, module._c)
    except InputError:
        raise
    except Exception as error:  # torch passes on any exception
        raise InputError(
            f"{path} can't be loaded by torch {torch.__version__}: {told(error)}"
        ) from error
    if not hasattr(module, "forward"):
        raise InputError(f"{path} has no method forward: save a module that has one")
    return module


def _check_touches_nothing(path: Path, content: bytes) -> None:
    """Check the code in a file, which runs when the file is loaded and when the module is called.

    Args:
        path: Path of the file, for messages.
        content: Its content.

    Raises:
        InputError: it could touch other files or memory outside its tensors, or would unpack to far more than the
            file's size.
    """
    import torch

    with io.BytesIO(content) as file:
        if said := excess(file):
            raise InputError(f"{path} can't be unpacked safely: {said}")
        # Of a file with this mark, torch reads a module for phones that needn't be the one in the archive.
        for_phones = content[4:8] == b"PTMF"
        with zipfile.ZipFile(file) as archive:
            older = any(name.endswith("/model.json") for name in archive.namelist())
    if for_phones or older:
        raise InputError(
            f"{path} has an older TorchScript format, or the one for phones: save the model with "
            "torch.jit.save"
        )
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    records = reader.get_all_records()
    for record in records:
        if record.endswith("pkl"):
            data = reader.get_record(record)
            _check_pickle(path, record, data)
            if record in ("data.pkl", "constants.pkl"):
                folder = record.removesuffix(".pkl")
                own = [one for one in records if one.startswith(f"{folder}/")]
                sizes = {one: len(reader.get_record(one)) for one in own}
                _check_tensors(path, record, data, sizes)
        if record.startswith("code/") and record.endswith(".py"):
            written = reader.get_record(record).decode(errors="replace")
            if _is_long(written):
                raise InputError(
                    f"{path} is damaged, or wasn't written by torch.jit.save: {record!r:.80} has a statement of "
                    f"more than {_MOST_PARTS:,} parts"
                )
            if found := _touching(written):
                raise InputError(
                    f"{path} has {found!r:.80} in its code, so it could touch other files or memory outside its "
                    "tensors: if you trust it, add trust_code=True, or load it in a my.py and give my.py:model"
                )


def _check_parts(path: Path, part: Any) -> None:
    """Check that each part of a loaded module is of the class that the code says.

    TorchScript finds the fields of an object by their places in that class, and torch doesn't compare the classes.

    Raises:
        InputError: one isn't, or an object isn't a part of its own.
    """
    import torch

    fields = part._type().containedTypes()
    parts = [one for _, one in torch._C.ModuleDict(part).items()]
    said = [
        one.qualified_name() for one in fields if one.kind() == "ClassType" and _holds_class(one)
    ]
    if said != [one._type().qualified_name() for one in parts] or any(
        _holds_class(one) for one in fields if one.kind() != "ClassType"
    ):
        raise InputError(
            f"{path} has objects in {part._type().qualified_name()!r:.80} whose class isn't sure: save a module whose "
            "fields are modules, tensors and plain values"
        )
    for one in parts:
        _check_parts(path, one)


def _holds_class(kind: Any) -> bool:
    """Whether a type is that of objects of a file's own class, or of lists and the like that hold them."""
    if kind.kind() == "ClassType":
        return not kind.qualified_name().startswith("__torch__.torch.classes.")
    return kind.kind() == "InterfaceType" or any(map(_holds_class, kind.containedTypes()))


def _touching(code: str) -> str:
    """Return the first name in TorchScript that could touch files or memory outside tensors; "" if there is none.

    A name after `torch.` or `ops.` must be that of a known operator. A name after another dot may be anything but an
    operator that isn't known, since TorchScript also calls operators as methods of their first input.
    """
    code = _APART.sub(lambda found: '"0"' if _NO_NAME.fullmatch(found[0]) else '""', code)
    for found in _NAMES.finditer(code):
        outer, inner = found["outer"], found["inner"]
        if found["odd"] or (outer and not _is_operator(outer)):
            return found[0]
        if inner is not None and not _is_part(inner):
            return found[0]
    gotten = 1
    while gotten:
        code, gotten = _GETTING.subn("gotten", code)
    return "getattr" if re.search(r"\bgetattr\b", code) else ""


def _is_operator(name: str) -> bool:
    """Whether this is the name of an operator that a file may call."""
    found = _OPERATOR.fullmatch(name)
    return found is not None and (found["aten"] is None or is_known(found["aten"]))


def _is_part(name: str) -> bool:
    """Whether a name after a dot isn't a method by which a tensor calls an operator that isn't known."""
    import torch

    if not name:
        return False
    if is_known(name) or name == "resize":  # that one copies, and modules have parts of that name
        return True
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return not any(one.name == "self" for each in schemas for one in each.arguments)


def _check_pickle(path: Path, record: str, data: bytes) -> None:
    """Check that torch takes no more memory for a pickle than it has bytes.

    Raises:
        InputError: it claims longer texts than it has, or a higher place for a value.
    """
    try:
        read = [*pickletools.genops(data)]
        claimed = max(
            (int(at or 0) for code, at, _ in read if code.name.endswith("BINPUT")), default=0
        )
    except Exception as error:  # pickletools passes on what its readers raise
        raise InputError(
            f"{path} is damaged: {record!r:.80} can't be read: {told(error)}"
        ) from error
    if claimed > len(data):
        raise InputError(
            f"{path} is damaged: {record!r:.80} has {len(data):,} bytes, and puts a value at {claimed:,}"
        )


def _check_tensors(path: Path, record: str, data: bytes, sizes: Mapping[str, int]) -> None:
    """Check that each tensor of a pickle lies within its numbers: torch reads whatever lies behind them.

    Args:
        path: Path of the file, for messages.
        record: Name of the pickle.
        data: The pickle.
        sizes: Sizes of the files of numbers, in bytes.

    Raises:
        InputError: one doesn't, or the pickle can't be read.
    """
    folder = record.removesuffix(".pkl")
    try:
        _Tensors(io.BytesIO(data), folder, sizes).load()
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(
            f"{path} is damaged: {record!r:.80} can't be read: {told(error):.300}"
        ) from error


class _Thing:
    """Object of any type in a pickle, of which nothing is kept."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Thing:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


class _Tensors(pickle._Unpickler):
    """Reader of a pickle that makes nothing of what it names, and checks its tensors.

    TorchScript writes a member of an enumeration as a call with a value in place of a tuple, which only the reader in
    Python can be told.
    """

    stack: list[Any]

    def __init__(self, file: io.BytesIO, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self._folder, self._sizes = folder, sizes

    def _call(self) -> None:
        called, given = self.stack[-2:]
        self.stack[-2:] = [called(*given) if isinstance(given, tuple) else called(given)]

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {pickle.REDUCE[0]: _call}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_qtensor"):
            return self._within
        if name.startswith("_rebuild") or name == "build_tensor_from_id":
            raise ValueError(f"it makes a tensor by {name:.80}")
        if name == "restore_type_tag":
            return self._tagged
        if _OTHER_CLASS.match(f"{module}.{name}"):
            raise ValueError(f"it makes an object of {name:.80}")
        return name if name.endswith("Storage") else _Thing

    def persistent_load(self, given: Any) -> tuple[int, int]:
        """Return the number of a storage's elements, and their size in bytes."""
        _, kind, key, _, count = given
        element_bytes = _ELEMENT_BYTES.get(str(kind), 1)
        held = self._sizes.get(f"{self._folder}/{key}", -1)
        if not 0 <= count * element_bytes <= held:
            raise ValueError(f"{count:,} numbers of {kind} are said to be in {held:,} bytes")
        return count, element_bytes

    @staticmethod
    def _tagged(value: Any, tag: str) -> Any:
        if "__torch__" in tag:  # torch doesn't look which objects are in there
            raise ValueError(f"it says that a list or dict is {tag:.80}")
        return value

    @staticmethod
    def _within(storage: tuple[int, int], offset: int, size: Any, stride: Any, *_: Any) -> _Thing:
        count, element_bytes = storage
        steps = [(n - 1) * step for n, step in zip(size, stride, strict=True)]
        claimed = math.prod(size)
        reach = offset + sum(steps) if claimed else 0
        if min((offset, *size, *stride, 0)) < 0 or (claimed and reach >= count):
            raise ValueError(f"a tensor of shape {[*size]} reaches beyond its {count:,} numbers")
        if claimed * element_bytes > max(count * element_bytes, _UNASKED_BYTES):
            raise ValueError(f"a tensor of shape {[*size]} repeats its {count:,} numbers too often")
        return _Thing()


def _is_long(code: str) -> bool:
    """Whether a statement, or a chain of branches, is so long that it could overflow the stack of torch's parser."""
    opened, parts = [0], 0
    for found in _PART.finditer(code):
        part = found[0]
        if part == "," or (part[0] == "\n" and len(opened) == 1):
            parts = opened[-1]
        if part in ")]}" and len(opened) > 1:
            parts = opened.pop()
        parts += 1 if part[0] == '"' else max(1, part.count("\n"), part.count("."))
        if part in "([{":
            opened.append(parts)
        if parts > _MOST_PARTS:
            return True
    return code.count("elif") > _MOST_PARTS


def input_names(module: Any) -> tuple[str, ...]:
    """Return the names of forward's required parameters, in order."""
    arguments = module.forward.schema.arguments[1:]
    return tuple(one.name for one in arguments if not one.has_default_value())


def export(
    module: Any,
    sample: Mapping[str, Array],
    workdir: Path,
    further: Sequence[Mapping[str, Array]] = (),
) -> Model:
    """Export a script module to ONNX, opset 17, and check that the answers stay the same.

    The batch is open where the answers are right at other batch sizes; else it is 1, and the file's
    metadata says why under `hasten.batch`. The sample settles all other dimensions, but for those in
    which further samples differ from it: these stay open.

    Args:
        module: Module of `torch.jit`.
        sample: One sample by the names of forward's parameters, without an axis for samples.
        workdir: Folder to write the ONNX file to.
        further: Samples of other shapes, on which the answers are checked too.

    Raises:
        InputError: the sample doesn't fit, the module can't run it or be exported, or the exported file
            gives other answers.
    """
    every = [one.name for one in module.forward.schema.arguments[1:]]
    samples = [ordered(one, every, list(input_names(module))) for one in (sample, *further)]
    samples.sort(key=lambda one: -sum(array.size for array in one.values()))
    check_dtypes(samples[0], module)
    module.eval()
    path = workdir / "model.onnx"
    note = "open"
    try:
        _write(module, samples, path, batch=2, open_batch=True)
        _check(module, samples, path, CHECKED_BATCHES)
    except InputError as why:
        note = f"1: {why}"
        _write(module, samples, path, batch=1, open_batch=False)
        _check(module, samples, path, (1,))
    proto = onnx.read(path)
    proto.ir_version = IR_VERSION
    frozen.note(proto, frozen.BATCH, note)
    path.write_bytes(proto.SerializeToString())
    return onnx.load(path)


def _tensors(given: Mapping[str, Array], batch: int) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(batch_of(array, batch)) for array in given.values())


def _answers(module: Any, given: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Return the module's own answers by name."""
    import torch

    try:
        with torch.no_grad(), silenced():
            answer = module(*_tensors(given, batch))
            outputs = flat_outputs(answer)
    except Exception as error:  # the module is the user's own code
        shown = ", ".join(f"{n} {a.dtype}{[batch, *a.shape]}" for n, a in given.items())
        raise InputError(f"the model can't run {shown}: {_last_line(error)}") from error
    if not outputs:
        raise InputError("the model returns no tensor: there is nothing to compare")
    if other := _other_than_tensors(answer):
        raise InputError(
            f"the model returns {other}, but torch exports only tensors and tuples of them from TorchScript: return "
            "those, or give the module that it was made from (my.py:model)"
        )
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _other_than_tensors(answer: Any, place: str = "") -> str:
    """Return the first thing in an answer that is neither a tensor nor a tuple, in words; "" if there is none."""
    import torch

    if isinstance(answer, tuple):
        parts = (_other_than_tensors(one, f"{place}[{n}]") for n, one in enumerate(answer))
        return next(filter(None, parts), "")
    if isinstance(answer, torch.Tensor):
        return ""
    kind = "nothing" if answer is None else f"a value of type {type(answer).__name__}"
    return f"{kind} at {place}" if place else kind


def _axes(
    samples: Sequence[Mapping[str, Array]], answers: Sequence[Mapping[str, Array]], *, batch: bool
) -> dict[str, dict[int, str]]:
    """Return the axes that are open, with the names of their dimensions, by input and output.

    Args:
        samples: Samples by input name, without an axis for samples.
        answers: Answers to batches of each sample, by output name.
        batch: Whether the axis of the batch is open.
    """
    for name in answers[0]:
        if len(ranks := {one[name].ndim for one in answers}) > 1:
            raise InputError(
                f"output {name!r} has {' or '.join(map(str, sorted(ranks)))} dimensions, depending on the "
                "sample: give samples of one shape"
            )
    axes = dict(zip(samples[0], open_axes(samples, batch=batch), strict=True))
    named = {
        tuple(one[name].shape[axis - 1] for one in samples): said
        for name, own in axes.items()
        for axis, said in own.items()
        if axis
    }
    for name, first in answers[0].items():
        axes[name] = {0: "batch"} if batch else {}
        for axis in range(1, first.ndim):
            sizes = tuple(one[name].shape[axis] for one in answers)
            if len(set(sizes)) > 1:
                axes[name][axis] = named.get(sizes, f"{name}_{axis}")
    return {name: own for name, own in axes.items() if own}


def _write(
    module: Any,
    samples: Sequence[Mapping[str, Array]],
    path: Path,
    *,
    batch: int,
    open_batch: bool,
) -> None:
    """Call torch's exporter for TorchScript, which traces the first sample."""
    import torch

    given = samples[0]
    answers = [
        {f"{name}_out" if name in given else name: array for name, array in own.items()}
        for own in (_answers(module, one, batch) for one in samples)
    ]
    outputs = list(answers[0])
    axes = _axes(samples, answers, batch=open_batch) or None
    try:
        with silenced():
            torch.onnx.export(
                module,
                _tensors(given, batch),
                str(path),
                input_names=list(given),
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # torch's exporter passes on any exception
        raise InputError(
            f"torch can't export the TorchScript model to ONNX: {_last_line(error)}; export the module "
            "that it was made from (my.py:model), or a program of torch.export"
        ) from error


def _check(
    module: Any, samples: Sequence[Mapping[str, Array]], path: Path, batches: Sequence[int]
) -> None:
    """Check an exported file's answers by ONNX Runtime, on the traced sample in batches and on the others.

    Raises:
        InputError: they differ from the module's, or the file can't be run.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path))
    except Exception as error:  # the runtime raises exceptions of its own
        raise InputError(f"the exported model can't be opened: {_last_line(error)}") from error
    traced, *others = samples
    for given, batch in (
        *((traced, batch) for batch in batches),
        *((one, batches[0]) for one in others),
    ):
        wanted = _answers(module, given, batch)
        feed = {name: batch_of(array, batch) for name, array in given.items()}
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        try:
            answers = session.run(None, feed)
        except Exception as error:  # the runtime raises exceptions of its own
            raise InputError(f"the exported model can't be run: {_last_line(error)}") from error
        for (name, own), other in zip(wanted.items(), answers, strict=True):
            same = own.shape == other.shape and own.dtype == other.dtype
            off = np.abs(own.astype(np.float64) - other).max(initial=0) if same else np.inf
            if not off <= RELATIVE_TOLERANCE * np.abs(own).max(initial=0):
                raise InputError(
                    f"the exported model's output {name!r} is off by {off:.3g} from the module's for "
                    f"{shapes}"
                )


def _last_line(error: BaseException) -> str:
    """Return the reason at the end of an error: TorchScript's begins with a trace of its code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line for line in lines if line.startswith(("RuntimeError:", "Unsupported", "Exporting"))
    ]
    return (named or lines[-1:] or [type(error).__name__])[-1].removeprefix("RuntimeError: ")
