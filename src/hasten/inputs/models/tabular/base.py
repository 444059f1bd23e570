"""Contract of a library whose models take rows, and what hasten knows of such a model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.objects import load_object
from hasten.core.records import to_record
from hasten.core.tensors import Array
from hasten.errors import HastenError, InputError, told
from hasten.inputs.models import onnx as onnx_files
from hasten.inputs.models.tabular.graph import INPUT, Graph
from hasten.inputs.models.tabular.own_answers import OwnAnswers
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import MAX_COLUMNS, Row
from hasten.inputs.pipeline.stored import PIPELINE_KEY
from hasten.inputs.pipeline.vectors import Quantity

LIBRARIES = (
    "hasten.inputs.models.tabular.lightgbm:LightGBM",
    "hasten.inputs.models.tabular.xgboost:XGBoost",
    "hasten.inputs.models.tabular.catboost:CatBoost",
    "hasten.inputs.models.tabular.sklearn:ScikitLearn",
)
"""Import path of each library's class; one file and one line here add a library."""
_HEAD_BYTES = 256
"""Number of bytes that tell what a file is."""
CONVERT = (
    "convert the whole model to an ONNX file yourself, as skl2onnx.to_onnx does, and give that file"
)
"""Advice about a model that has a part which isn't supported."""
_SHOWN = 5
"""Largest number of classes of a decision."""


@dataclass(frozen=True)
class Tabular:
    """A model of rows, ready to be written as ONNX.

    Attributes:
        library: Name of its library, for people.
        row: Step from a row by column names to the model's input; its dtype is the input's.
        labels: Name of each class; empty where the model gives numbers.
        width: Number of the model's outputs for a row: probabilities, or values.
        dtype: Element type of the outputs, by numpy's name.
        write: Function that adds the model to a graph, given the name of its rows; it returns the
            name of the output, of shape `[batch, width]`.
        scored: Whether the outputs of classes are scores that aren't probabilities.
        scores: Function as `write` that adds the scores behind probabilities instead, with one column for two
            classes; None where there is none.
        own: The library's own answers; None where its model isn't at hand.
    """

    library: str
    row: Row
    labels: tuple[str, ...]
    width: int
    dtype: str
    write: Callable[[Graph, str], str]
    scored: bool = False
    scores: Callable[[Graph, str], str] | None = None
    own: OwnAnswers | None = field(default=None, compare=False, repr=False)

    @property
    def pipeline(self) -> Pipeline:
        """Steps from a row by column names to a decision."""
        after: PostStep
        if self.labels:
            after = TopK(min(_SHOWN, len(self.labels)), self.labels, softmax=False)
        else:
            names = () if self.width == 1 else tuple(map(str, range(self.width)))
            after = Quantity(names=names)
        return Pipeline((self.row,), (after,))

    def export(self, workdir: Path) -> Model:
        """Write the model as an ONNX file into a folder.

        Raises:
            InputError: a part of the model isn't supported, and the message names it; or its parts don't fit
                each other, as in a damaged file.
        """
        graph = Graph(len(self.row.columns), self.row.dtype)
        try:
            output = self.write(graph, INPUT)
        except HastenError:
            raise
        except Exception as error:  # whatever numpy says of arrays from a stranger's file
            raise InputError(
                f"the model of {self.library} can't be written as ONNX: {told(error)}"
            ) from error
        stated = {PIPELINE_KEY: json.dumps(to_record(self.pipeline))}
        of_classes = "scores" if self.scored else "probabilities"
        name = of_classes if self.labels else "values"
        path = workdir / "model.onnx"
        graph.save(graph.finish(output, name, self.width, self.dtype, stated), path)
        return onnx_files.load(path)


class Library(ABC):
    """A library whose models take rows.

    Attributes:
        name: Name for people.
        module: Name of its package, from which its models' classes come.
        suffixes: Suffixes of the files that it reads without running code of theirs.
        begins: Regular expression that the first bytes of such a file match, whatever it is called; empty
            where they don't tell it.
        extra: hasten's extra that brings it.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    begins: ClassVar[bytes] = b""
    extra: ClassVar[str] = "tabular"

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Read a model's file.

        Raises:
            ImportError: the library isn't installed.
            InputError: the file can't be read.
        """

    @abstractmethod
    def describe(self, model: Any) -> Tabular:
        """Return what is known of a live model.

        Raises:
            InputError: it isn't fitted, or a part of it isn't supported; the message names it.
        """

    def own_answers(self, model: Any, described: Tabular) -> OwnAnswers | None:
        """Return the answers of a live model itself; None where the library can't be asked.

        Args:
            model: The live model, or what `read` returned.
            described: Its description, with the step that reads its rows.
        """
        return None


def libraries() -> list[Library]:
    """Return every library, without importing any."""
    return [load_object(path)() for path in LIBRARIES]


def library_of(model: Any) -> Library | None:
    """Return the library that a live object's class comes from; None for any other object."""
    if isinstance(model, type):
        return None
    roots = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    known = {path.rpartition(".")[2].partition(":")[0] for path in LIBRARIES}
    if not known.intersection(roots):
        return None
    found = {one.module: one for one in libraries()}
    return next(found[root] for root in roots if root in found)


def described(model: Any) -> Tabular:
    """Return what is known of a live model of one of the libraries.

    Raises:
        InputError: a part of the model isn't supported; the message names it.
    """
    library = library_of(model)
    if library is None:
        raise InputError(
            f"got a {type(model).__name__}, which no supported library of models for rows makes"
        )
    return _described(library, model)


def _described(library: Library, model: Any) -> Tabular:
    """Return what is known of a model that a library made or read."""
    try:
        found = library.describe(model)
        return replace(found, own=library.own_answers(model, found))
    except HastenError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"this {library.name} model has an unsupported form: its version may be too new, or its file damaged "
            f"({told(error)})"
        ) from error


def read_file(path: Path) -> Tabular | None:
    """Read the file of a model of rows, known by its first bytes or else its suffix; None for any other file.

    Raises:
        InputError: its library isn't installed, the file can't be read, or a part of the model isn't
            supported.
    """
    every, head = libraries(), _head(path)
    found = [one for one in every if one.begins and re.match(one.begins, head, re.DOTALL)]
    found = found or [one for one in every if path.suffix in one.suffixes]
    if not found:
        return None
    library = found[0]
    try:
        model = library.read(path)
    except ImportError as error:
        raise missing_extra(f"{path}, a model of {library.name},", library.extra) from error
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    return _described(library_of(model) or library, model)


def _head(path: Path) -> bytes:
    """Return a file's first bytes; none where it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def named_columns(names: Sequence[Any] | None, count: int, stem: str) -> tuple[str, ...]:
    """Return a model's column names, or made-up ones where it has none.

    Raises:
        InputError: it has more columns than a row may have.
    """
    if not 0 < count <= MAX_COLUMNS:
        raise InputError(f"the model takes {count} columns; give a model with 1 to {MAX_COLUMNS:,}")
    if names is None or len(names) != count:
        return tuple(f"{stem}{number}" for number in range(count))
    return tuple(str(name) for name in names)


def both_classes(graph: Graph, positive: str, dtype: str) -> str:
    """Return `[1 - p, p]` of the probability of the second class, of shape `[batch, 1]`."""
    negative = graph.add("Sub", np.ones((), dtype), positive)
    return graph.add("Concat", negative, positive, axis=1)


def sigmoid(graph: Graph, sums: str, dtype: str) -> str:
    """Return the sigmoid of sums of the type `dtype`; in float64, small ones keep their digits.

    ONNX Runtime's Sigmoid is 0 below about -18 in float32 and -36 in float64.
    """
    if dtype != "float64":
        return graph.add("Sigmoid", sums)
    one = np.float64(1)
    return graph.add("Div", one, graph.add("Add", graph.add("Exp", graph.add("Neg", sums)), one))


def normalized(graph: Graph, shares: str, otherwise: float) -> str:
    """Return float64 shares divided by their sum; where that is 0, something else."""
    whole = graph.add("ReduceSum", shares, np.array([1], np.int64))
    none = graph.add("Equal", whole, np.float64(0))
    divisor = graph.add("Where", none, np.float64(1), whole)
    found = graph.add("Div", shares, divisor)
    return found if otherwise == 0 else graph.add("Where", none, np.float64(otherwise), found)


def looked_up(
    graph: Graph,
    rows: str,
    columns: set[int],
    count: int,
    dtype: str,
    whole: Literal["truncated", "floor", "given"],
) -> str:
    """Return the rows with what sets are asked for in some columns: whole numbers, plus 1.

    Sets have no 0, since onnx's own evaluator takes a 0 for the end of a set.

    Args:
        graph: Graph to add to.
        rows: Name of the rows.
        columns: Places of the columns whose values are looked up in sets.
        count: Number of all columns.
        dtype: Type of the rows.
        whole: Rounding of numbers: towards zero, downwards, or not at all, as they are.
    """
    if not columns:
        return rows
    numbers = rows
    if whole == "floor":
        numbers = graph.add("Floor", rows)
    elif whole == "truncated":
        numbers = graph.add("Sub", rows, graph.add("Mod", rows, np.ones((), dtype), fmod=1))
    numbers = graph.add("Add", numbers, np.ones((), dtype))
    return graph.add("Where", marked(columns, count), numbers, rows)


def marked(columns: set[int], count: int) -> Array:
    """Return a mask of shape `(1, count)` that is True for some columns."""
    mask = np.zeros((1, count), bool)
    mask[0, sorted(columns)] = True
    return mask


LIMITED = """
import ctypes, os, resource, sys
os.environ["OMP_THREAD_LIMIT"] = "1"
most, content = int(sys.argv[3]), sys.stdin.buffer.read()
most += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
most = most if hard == resource.RLIM_INFINITY else min(most, hard)
resource.setrlimit(resource.RLIMIT_AS, (most, hard))
"""
"""Begin of a program that reads a file's content by a library in C: the second argument is the library, and the third
the memory that it may take from here on. Each thread would count as some 100 MB.
"""
_MOST_MEMORY = 1 << 30, 64
"""Memory of the process that tries a file, in bytes: so many, and so many for each byte of the file."""


def most_memory(content: bytes) -> str:
    """Return the memory that a process may take that reads a file, as an argument."""
    return str(_MOST_MEMORY[0] + _MOST_MEMORY[1] * len(content))


def check_survives(
    path: Path, library: str, program: str, *arguments: str, content: bytes = b""
) -> str:
    """Let a library read a file in a process of its own first, so that a crash of its parser ends that alone.

    Args:
        path: File of a model.
        library: Name of the library, for the message.
        program: Text of a Python program whose first argument is the file. Only a crash of it is an
            error: what else comes is told by what it prints, or where the file is really read.
        arguments: Further arguments of the program.
        content: Content of the program's standard input.

    Returns:
        What the program printed.

    Raises:
        InputError: the process crashed.
    """
    command = [sys.executable, "-P", "-c", program, str(path.absolute()), *arguments]
    ended = subprocess.run(command, input=content, capture_output=True)
    code = ended.returncode
    if code == -signal.SIGKILL:
        raise InputError(f"{path} can't be read: {library} was killed, probably for lack of memory")
    if code < 0:
        raise InputError(
            f"{path} is damaged: {library} crashed ({signal.Signals(-code).name}) while it read the file"
        )
    return ended.stdout.decode(errors="replace")
