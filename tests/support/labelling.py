"""A folder of samples to label, as a run writes it, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.core.records import write_json
from hasten.optimization.labelling.answers import Form, write_labels
from hasten.optimization.labelling.folder import ASKED, LABELS, PAGE, page_of


def labelling_folder(folder: Path, items: list[dict[str, Any]], form: Form) -> Path:
    """Write a folder that asks for labels of some items, as they stand on its page."""
    folder.mkdir()
    rows = [{"id": item["id"], "label": "", "text": item.get("text", "")} for item in items]
    write_labels(folder / LABELS, rows)
    (folder / PAGE).write_bytes(page_of(items, form, {}, "0" * 64))
    record = {
        "schema": 1,
        "sha256": "0" * 64,
        "sealed": 100,
        "classes": form.classes,
        "names": form.names,
        "ids": [item["id"] for item in items],
    }
    write_json(folder / ASKED, record)
    return folder
