"""The folder in which a person labels samples: a page that needs nothing else, and a table."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hasten.core.presence import is_file
from hasten.core.records import read_json, write_json, write_whole
from hasten.errors import InputError
from hasten.optimization.labelling.answers import Form, read_labels, write_labels
from hasten.optimization.labelling.samples import Questions, Sample, shown
from hasten.reporting.style import STYLE

LABELS, PAGE, ASKED = "labels.csv", "index.html", "asked.json"
_PARTS = files("hasten.optimization.labelling") / "page"
_SCHEMA = 1


def write_folder(
    folder: Path, questions: Questions, *, page: bool, known: Mapping[str, str]
) -> None:
    """Write the samples to label, unless the folder holds the same ones already.

    A table of labels that is there is kept; where other samples were asked for, under another name.

    Args:
        folder: Folder to write to.
        questions: Samples to label.
        page: Whether to write a page beside the table.
        known: Identifier -> label that is known already.

    Raises:
        InputError: the folder can't be written, or its table can't be read.
    """
    table, asked = folder / LABELS, folder / ASKED
    own = hashlib.sha256("\n".join(questions.places).encode()).hexdigest()
    same = asked.is_file() and read_asked(folder).get("sha256") == own
    if same and table.is_file() and (not page or (folder / PAGE).is_file()) and not known:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write {folder}: {error.strerror or error}") from error
    before = _before(folder, questions) if not same else _own(table, questions)
    labels = {**before, **known}
    samples, rows, items = len(questions), list[dict[str, str]](), list[dict[str, Any]]()
    for sample in questions.samples():
        rows.append(_row(sample, labels.get(sample.id, "")))
        if page:
            items.append(shown(sample, samples))
    if not same and table.is_file():
        table.rename(_free(folder))
    write_labels(table, rows)
    form = questions.form
    if page:
        write_whole(folder / PAGE, page_of(items, form, labels, own))
    record = {
        "schema": _SCHEMA,
        "sha256": own,
        "sealed": questions.sealed,
        "classes": form.classes,
        "names": form.names,
        "ids": list(questions.places),
    }
    write_json(asked, record)


def read_asked(folder: Path) -> dict[str, Any]:
    """Return what is asked in a folder.

    Raises:
        InputError: it is no such folder, or the record is damaged.
    """
    path = folder / ASKED
    if not is_file(path):
        raise InputError(
            f"{folder} has no samples to label: hasten optimize --ask-labels writes such a folder"
        )
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
        raise InputError(
            f"{path} is damaged, or another version of hasten wrote it; ask for labels again"
        )
    return record


def form_of(record: Mapping[str, Any]) -> Form:
    """Return the form of the labels that a folder asks for.

    Raises:
        InputError: the record is damaged.
    """
    try:
        return Form(int(record["classes"]), tuple(map(str, record["names"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{ASKED} is damaged: {error}; ask for labels again") from error


def _own(table: Path, questions: Questions) -> dict[str, str]:
    return read_labels(table, list(questions.places), questions.form)


def _before(folder: Path, questions: Questions) -> dict[str, str]:
    """Return labels of these samples that were given when others were asked for too."""
    table = folder / LABELS
    if not table.is_file() or not (folder / ASKED).is_file():
        return {}
    record = read_asked(folder)
    if form_of(record) != questions.form:
        return {}
    labels = read_labels(table, list(map(str, record.get("ids", ()))), questions.form)
    return {key: label for key, label in labels.items() if key in questions.places}


def _free(folder: Path) -> Path:
    """Return a free name for a table of labels that were given for other samples."""
    number = 1
    while (path := folder / f"labels-before-{number}.csv").exists():
        number += 1
    return path


def _row(sample: Sample, label: str) -> dict[str, str]:
    """Return a sample's row of the table; columns of the data stand after the label."""
    row = {"id": sample.id, "label": label, "row": str(sample.row + 1)}
    if sample.file is not None:
        row["file"] = str(sample.file)
    if sample.text:
        row["text"] = sample.text
    for name, value in (sample.values or {}).items():
        row.setdefault(name, "" if value is None else str(value))
    return row


def page_of(items: list[dict[str, Any]], form: Form, labels: Mapping[str, str], key: str) -> bytes:
    """Return the page, which asks for nothing outside itself but the server that it came from.

    Args:
        items: Items to show of each sample.
        form: Form of a label.
        labels: Identifier -> label that is known already.
        key: Name under which the browser keeps what was labelled.
    """
    script, style = ((_PARTS / name).read_text() for name in ("page.js", "page.css"))
    style = STYLE + style
    data = {
        "key": f"hasten-labels-{key[:16]}",
        "items": items,
        "classes": form.classes,
        "names": form.names,
        "labels": labels,
    }
    # "<" is escaped, so that no text of a sample ends the script that holds it.
    text = json.dumps(data).replace("<", "\\u003c")
    policy = (
        "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'"
    )
    page = Template((_PARTS / "page.html").read_text())
    return page.substitute(policy=policy, style=style, script=script, data=text).encode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
