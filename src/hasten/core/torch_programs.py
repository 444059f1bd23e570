"""Safe handling of torch's exported programs (.pt2): keeping only what is needed, and checking.

torch.export.load runs code that a program holds. It unpickles constants, evaluates the expressions
of sizes and guards as Python, finds callables by dotted names (`torch.os.system`), writes names
into source that it executes, imports what a tree of outputs names, and loads compiled libraries. So
a program is first read here, by the reader that torch uses, and every string in it must be one that
a plain program has. Its operators must be known ones, since others may reach memory outside their tensors.

Source: torch 2.13, torch/_export/serde/serialize.py, torch/export/pt2_archive/_package.py, torch/export/_unlift.py.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hasten.core.archives import excess
from hasten.core.known_operators import is_known
from hasten.core.torch_tensors import unlike_its_shape
from hasten.errors import CandidateError

_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt|"
    r"data/weights/(weight_\d+|model\.pt|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model\.pt|model_constants_config\.json)",
    re.ASCII,
)
_LEFT_OUT = ("metadata", "guards_code", "treespec_namedtuple_fields")
"""Fields that aren't kept: nodes' origins, guards on requests (sessions check), display names."""
_EMPTY = frozenset({*_LEFT_OUT, "custom_obj", "custom_obj_values", "as_custom_obj", "use_pickle"})
_WORD = re.compile(r"[\w.+@-]*", re.ASCII)
_NAME = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
_TEXT = re.compile(r"[\w .,:>+-]*", re.ASCII)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)
_TENSOR_OPERATOR = re.compile(r"torch\.ops\.(?:aten|prims)\.(\w+)\.(?!__)\w+", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)|"
    r"torch\.sym_(float|int|ite|max|min|not|sum)|math\.(ceil|floor|trunc)|"
    r"_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)",
    re.ASCII,
)
_DECOMPOSED = "_native_batch_norm_legit"
"""Begin of the operators that normalizations of batches are made of, which read behind weights that are too short."""
_EXPRESSION = re.compile(r"[\w'(), =+-]{1,1000}", re.ASCII)
_SYMBOL = re.compile(r"[a-z]+\d+", re.ASCII)
_ARITHMETIC = re.compile(
    "Symbol|Integer|Add|Mul|Max|Min|FloorDiv|CleanDiv|CeilDiv|Mod|PythonMod|ModularIndexing|Equality|Unequality|"
    "GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not|true|false"
)
_LOADING = threading.Lock()
"""Lock for one program at a time: torch's reader keeps state of the process, and so does the guard below."""
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def keep(program: Path, path: Path) -> None:
    """Copy a program without the parts that it runs without, in the form that `check` accepts.

    Raises:
        CandidateError: the file is no such program, or would unpack to far more than its size.
        OSError: the file can't be read or written.
    """
    _check_claims(program)
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
        if not any(entry.filename.endswith(f"/{_PROGRAM}") for entry in old.infolist()):
            raise _no_program(program)
        for entry in old.infolist():
            large = entry.file_size >= zipfile.ZIP64_LIMIT
            copy = zipfile.ZipInfo(entry.filename)
            with old.open(entry) as source, new.open(copy, "w", force_zip64=large) as kept:
                if entry.filename.endswith(f"/{_PROGRAM}"):
                    kept.write(json.dumps(_lean(json.load(source))).encode())
                else:
                    shutil.copyfileobj(source, kept)


def check(path: Path) -> None:
    """Check that a program calls only known operators of torch, before torch loads it.

    Raises:
        CandidateError: a part of it could run code, doesn't belong in a plain program, or would take far
            more memory than the file's size.
    """
    import torch

    _check_claims(path)
    with zipfile.ZipFile(path) as archive:
        if any("/" not in name for name in archive.namelist()):
            raise _no_program(path)  # torch would read it in its older format
    reader = torch._C.PyTorchFileReader(str(path))
    records = reader.get_all_records()
    if _PROGRAM not in records:
        raise _no_program(path)
    for record in records:
        if not _RECORD.fullmatch(record):
            raise _may_run_code(path, "record", record)
    for record in (_PROGRAM, *_CONFIGS):
        if record in records:
            for key, value in _refused(json.loads(reader.get_record(record)), ""):
                raise _may_run_code(path, key, value)


def load(path: Path) -> Any:
    """Check a program, and load it by torch with nothing unpickled but tensors.

    Raises:
        CandidateError: a part of it could run code, or doesn't belong in a plain program, or a tensor claims
            far more memory than the file has.
        Exception: torch can't load it.
    """
    import torch

    check(path)
    with _LOADING, _nothing_unpickled(torch):
        program = torch.export.load(str(path))
    every = (*program.state_dict.items(), *program.constants.items())
    if said := unlike_its_shape(each for each in every if torch.is_tensor(each[1])):
        raise CandidateError(f"the numbers of {said}, and save the program again")
    return program


@contextmanager
def _nothing_unpickled(torch: Any) -> Iterator[None]:
    """Make torch.load refuse everything but tensors.

    torch.export falls back on running any pickle, and example inputs are a pickle that `check`
    doesn't look into.
    """
    load = torch.load
    try:
        torch.load = lambda *given, **settings: load(*given, **settings | {"weights_only": True})
        yield
    finally:
        torch.load = load


def _check_claims(path: Path) -> None:
    """Check how much memory a program's records take, and those of the archives among them.

    Raises:
        CandidateError: they take far more than the file's size.
    """
    with path.open("rb") as file, zipfile.ZipFile(path) as archive:
        said = excess(file)
        for entry in archive.infolist() if not said else ():
            if entry.filename.endswith("/model.pt"):
                with archive.open(entry) as inner, contextlib.suppress(zipfile.BadZipFile):
                    said = said or excess(inner)
    if said:
        raise CandidateError(f"{path.name} can't be unpacked safely: {said}")


def _no_program(path: Path) -> CandidateError:
    return CandidateError(
        f"{path.name} isn't an exported program of torch 2.8 or newer: export the model again"
    )


def _may_run_code(path: Path, key: str, value: Any) -> CandidateError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    decomposed = _DECOMPOSED in str(value)
    step = "save it before run_decompositions()" if decomposed else "build it again from the model"
    return CandidateError(
        f"a program may only call known operators of torch, but {path.name} has the {key} {shown}, "
        f"which could run other code or reach other memory: {step}"
    )


def _lean(value: Any) -> Any:
    """Return a program's JSON without fields that aren't kept and messages of assertions."""
    if isinstance(value, list):
        return [_lean(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("name") == "assert_msg" and "arg" in value:
        return value | {"arg": {"as_string": ""}}
    return {name: type(one)() if name in _LEFT_OUT else _lean(one) for name, one in value.items()}


def _refused(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield what a plain program doesn't have, each with the name of its field."""
    if key in _EMPTY and value:
        yield key, value
    elif isinstance(value, str):
        if not _RULES.get(key, _WORD.fullmatch)(value):
            yield key, value
    elif isinstance(value, list):
        for one in value:
            yield from _refused(one, key)
    elif isinstance(value, dict):
        for name, one in value.items():
            if not _WORD.fullmatch(name):
                yield "name", name
            yield from _refused(one, name)


def _is_operator(text: str) -> bool:
    """Whether a node may call what this names."""
    if found := _TENSOR_OPERATOR.fullmatch(text):
        return is_known(found[1])
    return bool(_OPERATOR.fullmatch(text))


def _is_size(text: str) -> bool:
    """Whether an expression is arithmetic of integers and symbols, in the form of `sympy.srepr`."""
    if not _EXPRESSION.fullmatch(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    return all(_is_arithmetic(node) for node in nodes)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(_ARITHMETIC.fullmatch(node.func.id))
    if isinstance(node, ast.Name):
        return bool(_ARITHMETIC.fullmatch(node.id) or _SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(_SYMBOL.fullmatch(node.value))
        return isinstance(node.value, int)
    return isinstance(node, (ast.Expression, ast.Load, ast.keyword, ast.UnaryOp, ast.USub))


def _is_tree(text: str) -> bool:
    """Whether inputs or outputs are nested in tuples, lists and dicts only."""
    return _is_plain_tree(json.loads(text)[1])


def _is_plain_tree(tree: Any) -> bool:
    context = tree["context"] or "null"
    names = json.loads(context) if isinstance(context, str) else context
    return (
        tree["type"] in _TREES
        and (names is None or isinstance(names, list))
        and all(isinstance(name, str) and _WORD.fullmatch(name) for name in names or ())
        and all(map(_is_plain_tree, tree["children_spec"]))
    )


def _never(text: str) -> bool:
    return False


_RULES: dict[str, Callable[[str], object]] = {
    "name": _NAME.fullmatch,
    "as_name": _NAME.fullmatch,
    "forward_arg_names": _NAME.fullmatch,
    "target": _is_operator,
    "as_operator": _is_operator,
    "as_string": _TEXT.fullmatch,
    "as_strings": _TEXT.fullmatch,
    "path_name": _PAYLOAD.fullmatch,
    "expr_str": _is_size,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    **dict.fromkeys(("as_int", "as_ints", "as_expr", "min_val", "max_val"), _never),
}
"""Checks of the strings in a field, by its name; strings in other fields must be words."""
