"""A project folder for a model: a data script with its own inputs, its options, a Makefile and a CI file."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.bundle.manifest import one_line
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.made_up import PICTURE, SEQUENCE, axes_of
from hasten.inputs.data.text_files import reads_texts
from hasten.inputs.metrics.choice import EVERY_OUTPUT
from hasten.inputs.metrics.outputs import class_output, decided_output
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.onnx import UNKNOWN_RANK
from hasten.inputs.models.source import find_model
from hasten.inputs.models.stated_inputs import stated_inputs, stated_outputs
from hasten.inputs.models.tabular.base import Tabular

TEMPLATES = Path(__file__).parent / "templates"
_PLACEHOLDER = "            # A placeholder: "
_NAMED = f"""\
{_PLACEHOLDER}give each of the model's inputs the shape and type of one sample.
"""
_UNNAMED = f"""\
{_PLACEHOLDER}name each of the model's inputs here, with the shape and type of one sample.
            "input": np.zeros((3, 224, 224), "float32"),"""
_TEXT = """\
        inputs = "a text"  # or ["a text", "its partner"] for a model of pairs"""
_IMAGE = (3, PICTURE, PICTURE)
_INPUT = "            {name!r}: np.zeros({shape}, {dtype!r}),{comment}"


def init(model: str, out: Path | None = None) -> Path:
    """Write a project folder for a model, and return its path.

    The folder holds `data.py`, to be filled in with samples of the model's own inputs; `hasten.toml` with
    the options of the commands; a `Makefile` with the commands from a first try to a server; and a workflow
    that certifies the bundle at each commit.
    It is written beside its place and renamed, so that nothing half written is left.

    Args:
        model: Model by a name that `hasten.optimize` takes.
        out: Folder to write; by default the model's name with "-project", in the current folder.

    Raises:
        InputError: there is no such model, its name has control characters, the folder exists, or it
            can't be written.
    """
    if one_line(model) != model:
        raise InputError(
            f"{model!r} contains control characters, which a Makefile can't contain: rename the "
            "model"
        )
    found = find_model(model)
    stem = model.partition("@")[0].rpartition(":")[2] if ":" in model else Path(model).stem
    place = out if out is not None else Path(f"{stem or 'model'}-project")
    if place.exists() or place.is_symlink():
        raise InputError(f"{place} exists already: give another folder, or move it away")
    files = _files(found, _seen_from(model, place))
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}.new")
    try:
        for name, text in files.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        new.rename(place)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(f"can't write {place}: {error.strerror or error}") from error
    return place


def has_placeholder(place: Path) -> bool:
    """Whether a project's data script has a placeholder instead of the model's inputs."""
    script = place / "data.py"
    return script.exists() and _PLACEHOLDER in script.read_text(encoding="utf-8")


def _seen_from(model: str, place: Path) -> str:
    """Return a model's name for commands that run in the project's folder."""
    path, colon, name = model.partition(":")
    if not Path(path).exists():
        return model
    return os.path.relpath(Path(path).absolute(), place.absolute()) + colon + name


def _files(found: Any, name: str) -> dict[str, str]:
    """Return the text of each file by its place in the folder."""
    rows = isinstance(found, Tabular)
    data = "rows.csv:label" if rows else "data.py:samples"
    fresh = "new.csv:label" if rows else "data.py:new_samples"
    outputs = stated_outputs(found)
    in_toml = json.dumps(name, ensure_ascii=False)  # TOML quotes texts as JSON does
    files = {
        "hasten.toml": _filled(
            "hasten.toml.txt",
            model_in_toml=in_toml,
            data=data,
            metric="" if rows else _metric(outputs),
            fresh=fresh,
        ),
        "Makefile": _filled("Makefile.txt", model=_in_make(shlex.quote(name))),
        ".github/workflows/hasten.yml": _filled("workflow.yml", fresh=fresh),
    }
    if not rows:
        specs = stated_inputs(found)
        said = name.replace("\\", "\\\\").replace('"', '\\"')  # it stands in a docstring
        texts = isinstance(found, Folder) and reads_texts(found.pipeline) is not None
        files["data.py"] = _filled(
            "data.py.txt",
            model=said,
            each="a text" if texts else "inputs without an axis for the batch",
            inputs=_TEXT if texts else f"        inputs = {{\n{_inputs(specs)}\n        }}",
            label=_label(outputs),
        )
    return files


def _in_make(text: str) -> str:
    """Return a text as the value of a variable of make, which reads $, # and backslashes before it."""
    return re.sub(r"(\\*)#", r"\1\1\\#", text.replace("$", "$$"))


def _filled(template: str, **words: str) -> str:
    """Return a template with each <<name>> replaced by its word."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"<<(\w+)>>", lambda found: words[found[1]], text)


def _label(outputs: Sequence[TensorSpec]) -> str:
    """Return a line on what a label is, by what the model gives."""
    spec = class_output(outputs)
    if spec is not None and isinstance(spec.shape[1], int):
        return f"a label is the number of a class, 0 to {spec.shape[1] - 1}"
    if not outputs:
        return "a label is the number of a class, or what the metric reads"
    shown = one_line(", ".join(map(str, outputs)))
    return f"a label is what the metric reads; the model gives {shown}"


def _metric(outputs: Sequence[TensorSpec]) -> str:
    """Return lines of TOML with a metric, where the outputs suggest none; empty where they suggest one."""
    if not outputs:
        return (
            "# Nothing states the model's outputs. If a command says that no metric was named, choose one here, as\n"
            "# docs/reference/metrics.md describes them:\n"
            '# metric = "regression:0.01@all"\n'
        )
    if class_output(outputs) or decided_output(outputs):
        return ""
    kinds = {spec.name: _judged_by(spec) for spec in outputs}
    value: str | list[str] = [f"{kind}@{name}" for name, kind in kinds.items()]
    if len(set(kinds.values())) == 1:
        value = f"{kinds[outputs[0].name]}@{EVERY_OUTPUT}"
    elif any(name in ("", EVERY_OUTPUT) or one_line(name) != name for name in kinds):
        value = "same_answers"
    return (
        "# Choose how answers are judged: docs/reference/metrics.md describes the metrics. A tolerance, such as 0.01, is in\n"
        f"# the output's unit. The model gives {one_line(', '.join(map(str, outputs)))}.\n"
        f"metric = {json.dumps(value, ensure_ascii=False)}\n"
    )


def _judged_by(spec: TensorSpec) -> str:
    """Return a metric that reads an output, whatever it means."""
    classes = len(spec.shape) == 2 and spec.shape[1] != 1
    return "agreement" if classes or "float" not in spec.dtype else "regression:0.01"


def _inputs(specs: Sequence[TensorSpec]) -> str:
    """Return lines of Python with one sample of the inputs."""
    if not specs:
        return _UNNAMED
    unknown = [spec for spec in specs if spec.shape == (UNKNOWN_RANK,)]
    if unknown:
        specs = [replace(spec, shape=("batch", *_IMAGE)) for spec in specs]
    return (_NAMED if unknown else "") + "\n".join(_input(spec) for spec in specs)


def _input(spec: TensorSpec) -> str:
    """Return a line of Python with one sample of an input, and which of its sizes are open."""
    pictures = axes_of(spec)
    whole = bool(spec.shape) and isinstance(spec.shape[0], int) and spec.shape[0] != 1
    sizes: list[int] = []
    open_axes: list[str] = []
    for axis, size in enumerate(spec.shape):
        if axis == 0 and not whole:
            continue
        if isinstance(size, str):
            picture = pictures.get(size, pictures.get(f"{spec.name}[{axis}]", False))
            open_axes.append(f"axis {len(sizes)} is open ({one_line(size)})")
            size = PICTURE if picture else SEQUENCE
        sizes.append(size)
    comment = f"  # {', '.join(open_axes)}" if open_axes else ""
    return _INPUT.format(name=spec.name, shape=tuple(sizes), dtype=spec.dtype, comment=comment)
