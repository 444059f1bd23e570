"""Comparison of a model of rows, as ONNX, with the answers of its own library, before a run is about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.installed import engine_kinds
from hasten.errors import CandidateError, HastenError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.spool import write_spool
from hasten.inputs.data.table import TableRows
from hasten.inputs.metrics.same_answers import differences
from hasten.inputs.models.tabular.base import CONVERT, Tabular
from hasten.inputs.models.tabular.own_answers import NoAnswersError
from hasten.inputs.pipeline.row_arrays import RowArrays
from hasten.inputs.pipeline.rows import Row
from hasten.measure.workbench import Bench

_ROWS, _UNUSUAL = 300, 20
"""Largest number of rows of the data that are compared, and of rows made of them with unusual values."""
_FEW = 0.02
"""Share of rows that may differ from the library's answers, as the last bit of a scaled number at a tree's threshold lets them."""
_UNSEEN = "a word that training did not have"
_Pair = tuple[list[Any], Array]
"""Row of plain values, and the same as the model takes it."""


def check_own_answers(found: Tabular, model: Model, parts: Parts, folder: Path) -> str:
    """Compare a model's answers with its library's own, on rows of the search split and some unusual ones.

    Unusual rows have a missing value or an unknown word where the step `row` lets it through.

    Args:
        found: The model, whose library can be asked or not.
        model: The same as ONNX.
        parts: Parts of the data.
        folder: Folder of the run.

    Returns:
        A note for people where the answers couldn't be compared though the library is at hand, or where a few
        differ as after a rounding at a tree's threshold, else "".

    Raises:
        InputError: more of them differ.
    """
    if found.own is None:
        return ""
    usual = list(_usual(found, parts))
    unusual = list(_unusual(found.row, [row for row, _ in usual]))
    not_compared = f"the model's answers weren't compared with those of {found.library} itself"
    if not usual:
        return f"{not_compared}, since the data have no row as it takes it"
    try:
        worst = _worst(found, model, usual, folder)
    except (NoAnswersError, HastenError) as error:
        return f"{not_compared}: {error}"
    note = _check(found, worst, "rows of the data", _FEW)
    try:
        worst = _worst(found, model, unusual, folder)
    except (NoAnswersError, HastenError):  # it may refuse what no training had
        return note
    _check(found, worst, "rows with a missing value or an unknown word", 0)
    return note


def _check(found: Tabular, worst: Array, what: str, few: float) -> str:
    """Refuse a model of which more than a share of rows differ; return a note on fewer."""
    assert found.own is not None
    differing = int((worst > found.own.rounding).sum())
    if differing > few * len(worst):
        raise InputError(
            f"hasten's form of this model doesn't answer as {found.library} does: {differing} of {len(worst)} {what} "
            f"differ, by up to {worst.max():.2g} of the largest answer. This is an error in hasten: please report it; "
            f"until it is mended, {CONVERT}"
        )
    if not differing:
        return ""
    return (
        f"{differing} of {len(worst)} {what} answer otherwise than {found.library} itself, by up to {worst.max():.2g} of "
        "the largest answer, probably since a rounding crosses a tree's threshold: the result is about hasten's form of the model"
    )


def _usual(found: Tabular, parts: Parts) -> Iterator[_Pair]:
    """Yield rows of the search split."""
    row, searched = found.row, parts.searched
    table = searched.whole if isinstance(searched, Subset) else None
    while table is not None and not isinstance(table, TableRows) and hasattr(table, "whole"):
        table = table.whole  # whose labels alone are others
    kept: dict[int, Sequence[Any]] = {}
    if isinstance(searched, Subset) and isinstance(table, TableRows) and table.given:
        there = enumerate(searched.indices.tolist())
        kept = {place: table.given[at] for place, at in there if at in table.given}
    places = list(kept)[:_ROWS] if kept else list(range(min(_ROWS, len(parts.search))))
    (numbers,) = parts.search.inputs(places).values()
    for place, own in zip(places, numbers, strict=True):
        values = list(kept[place]) if kept else _unread(row, own)
        if values is not None and _comparable(found, values):
            yield values, own


def _comparable(found: Tabular, values: Sequence[Any]) -> bool:
    """Whether the library itself takes a row's missing values."""
    assert found.own is not None
    if found.own.missing_words:
        return True
    worded = {column for column, _ in found.row.words}
    return all(
        value is not None or column not in worded
        for column, value in zip(found.row.columns, values, strict=True)
    )


def _unread(row: Row, numbers: Array) -> list[Any] | None:
    """Return the values that became a row's numbers; None where the numbers don't tell."""
    if row.hashed:
        return None
    words = dict(row.words)
    values: list[Any] = []
    for column, number in zip(row.columns, numbers.tolist(), strict=True):
        if number != number:
            values.append(None)
        elif column not in words:
            values.append(number)
        elif number in range(len(words[column])):
            values.append(words[column][int(number)])
        else:
            return None
    return values


def _unusual(row: Row, rows: Sequence[list[Any]]) -> Iterator[_Pair]:
    """Yield rows with one value changed for a missing one or an unknown word, column by column."""
    odd: list[tuple[int, Any]] = []
    unseen = dict(row.unseen)
    first = {column: words[0] for column, words in row.words}
    for place, column in enumerate(row.columns):
        if column in row.hashed or (column in unseen and isinstance(first[column], str)):
            odd.append((place, _UNSEEN))
        elif row.missing == "nan" and column not in {*row.needed, *first}:
            odd.append((place, None))
    chosen = [odd[at] for at in np.linspace(0, len(odd) - 1, min(len(odd), _UNUSUAL)).astype(int)]
    for (place, value), values in zip(chosen, rows, strict=False):
        changed = [*values[:place], value, *values[place + 1 :]]
        try:
            numbers = row(changed)
        except InputError:
            continue
        if RowArrays(row).refused(numbers[None]) is None:
            yield changed, numbers


def _worst(found: Tabular, model: Model, pairs: Sequence[_Pair], folder: Path) -> Array:
    """Return each row's largest difference, relative to the largest answer, `(n,)`.

    Raises:
        NoAnswersError: the library doesn't answer these rows.
        HastenError: no engine answers them.
    """
    if not pairs:
        return np.zeros(0)
    assert found.own is not None
    # A process of its own meets a damaged model first.
    got = _answers(model, np.stack([numbers for _, numbers in pairs]), folder)
    own = found.own.of(found, [values for values, _ in pairs])
    return differences({"": got.astype(np.float64)}, {"": own})


def _answers(model: Model, rows: Array, folder: Path) -> Array:
    """Return the ONNX file's answers, by the first exact engine of this host that runs it.

    Raises:
        HastenError: none does.
    """
    place, target = folder / "own-answers", Target.host()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    bench, why = Bench(place, target), "no engine runs it"
    samples = write_spool(ArrayDataset({model.inputs[0].name: rows}, missing=True), place / "rows")
    try:
        for number, engine in enumerate(
            one for kind in engine_kinds() for one in kind.variants(target)
        ):
            if not engine.exact or "onnx" not in engine.formats:
                continue
            (built := place / str(number)).mkdir()
            try:
                artifact = bench.build(engine, model, built)
                opened = bench.open_built(engine, artifact, fresh=False)
            except CandidateError as error:
                why = str(error)
                continue
            try:
                chunks = [next(iter(one.values())) for one in bench.predict(opened, samples)]
                return np.concatenate(chunks)
            finally:
                opened.worker.kill()
        raise CandidateError(why)
    finally:
        shutil.rmtree(place, ignore_errors=True)
