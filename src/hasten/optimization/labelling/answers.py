"""The form of a label that a person gives, as a text, and the files that hold such labels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.core.csv_lines import csv_lines
from hasten.core.records import write_whole
from hasten.errors import InputError

UNSURE = "?"
"""Label of a sample that nobody can tell: it counts as lost, the worst that it can be."""
_NOTHING = frozenset(("", "-1", "nan", "na", "n/a", "none", "null", "<na>"))
_MOST_BYTES = 1 << 30
"""Size in bytes of the largest file of labels that is read."""


@dataclass(frozen=True)
class Form:
    """Form of a label: a class, by its name or its number, or a number.

    Attributes:
        classes: Number of classes; 0 where labels are numbers.
        names: Names of the classes, in order; empty where they have none.
    """

    classes: int = 0
    names: tuple[str, ...] = ()

    def read(self, text: str) -> float | None:
        """Return the label that a text stands for; None where it is missing or unsure.

        Raises:
            InputError: it stands for none.
        """
        given = text.strip()
        if given == UNSURE or not self.is_given(given):
            return None
        if given in self.names:
            return self.names.index(given)
        number = _number(given)
        if not self.classes:
            if number is None:
                raise InputError(f"{given!r:.80} isn't a number")
            return number
        if number is None or any(_number(name) is not None for name in self.names):
            raise InputError(f"{given!r:.80} isn't a class: {self.said}")
        return self.read_number(number)

    def is_given(self, text: str) -> bool:
        """Whether a text is a label, or says that nobody can tell; one like "" or "NA" is neither.

        A class may have such a name; then the text is its label.
        """
        given = text.strip()
        return given in self.names or given.lower() not in _NOTHING

    def read_number(self, number: float) -> int:
        """Return the class of a number.

        Raises:
            InputError: there is none.
        """
        if number % 1 or not 0 <= number < self.classes:
            raise InputError(f"{number:g} isn't a class: give 0 to {self.classes - 1}")
        return int(number)

    @property
    def said(self) -> str:
        """Labels that there are, in words."""
        if not self.classes:
            return "a number"
        if not self.names:
            return f"0 to {self.classes - 1}"
        shown = ", ".join(self.names[:8])
        return shown if len(self.names) <= 8 else f"{shown} and {len(self.names) - 8} more"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_labels(path: Path, ids: Sequence[str], form: Form) -> dict[str, str]:
    """Read a file of labels: a table whose first line names the columns `id` and `label`.

    Rows may be in any order, other columns may stand beside, and the separator may be a semicolon or
    a tab. A sample without a label, or without a row, is still to be labelled.

    Args:
        path: Path of the file; one that isn't there holds no labels.
        ids: Identifiers of the samples that are to be labelled.
        form: Form of a label.

    Returns:
        Identifier -> label, as it was written.

    Raises:
        InputError: the file can't be read; it has a label for an unknown sample, or for one sample two
            that differ; or a label is none.
    """
    if not path.is_file():
        return {}
    known, found, places = frozenset(ids), dict[str, str](), dict[str, int]()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{path} is larger than {_MOST_BYTES >> 20} MiB; keep only the columns id and label"
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            lines = csv_lines(path, file, delimiter=max(",;\t", key=head.count))
            names = [name.strip().lower() for name in next(lines, (0, []))[1]]
            if "id" not in names or "label" not in names:
                raise InputError(f"{path}: the first line must name the columns id and label")
            at, told = names.index("id"), names.index("label")
            for line, row in lines:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {line}"
                if len(row) <= max(at, told):
                    raise InputError(
                        f"{where}: it has {len(row)} values, but the first line "
                        f"names {len(names)} columns"
                    )
                key, label = row[at].strip(), row[told].strip()
                _take(key, label, known, form, found, places, where, line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as CSV in UTF-8: {error}") from error
    return found


def _take(
    key: str,
    label: str,
    known: frozenset[str],
    form: Form,
    found: dict[str, str],
    places: dict[str, int],
    where: str,
    line: int,
) -> None:
    """Take one row, after checking it.

    Raises:
        InputError: the row can't be used.
    """
    if key not in known:
        raise InputError(f"{where}: there is no sample {key!r:.80} to label; leave the row out")
    if not form.is_given(label):
        return
    try:
        value = form.read(label)
    except InputError as error:
        raise InputError(f"{where}: sample {key}: {error}") from error
    if key in found and form.read(found[key]) != value:
        raise InputError(
            f"{where}: sample {key} is {label!r:.80} here and {found[key]!r:.80} in line "
            f"{places[key]}; keep one of them"
        )
    found[key], places[key] = label, line


def write_labels(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table of labels, all at once.

    Args:
        path: Path of the file.
        rows: Rows by column, at least one; all have the same columns.

    Raises:
        InputError: the file can't be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
