"""Folders that hold one folder of files for each class, or files without a class, and their `groups.csv`."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np

from hasten.core.csv_lines import csv_lines
from hasten.core.tensors import Array
from hasten.core.words import counted
from hasten.errors import InputError
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.pipeline.base import Pipeline

GROUPS = "groups.csv"
UNLABELLED = frozenset(("unlabelled", "unlabeled"))
"""Names of a folder, beside those of classes, of files whose class isn't known."""

NUMBERED = "classes"
"""Key of a manifest's `sealed` for the names of the class folders whose order numbers the classes."""
_SHOWN = 4
"""Largest number of classes that the sentence on their numbers shows."""


def files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Return the files of a folder with some suffixes, by name; hidden ones are skipped, as they aren't data."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def link_out(folder: Path) -> Path | None:
    """Return a link in a folder, or in one of its folders, that leads out of it; None if there is none.

    Data sets of links to files elsewhere are usual, so their files are samples like others. Hidden files
    and folders are skipped, as they aren't data.
    """
    left = [os.fspath(folder)]
    with contextlib.suppress(
        OSError, ValueError
    ):  # no folder, or whoever reads the data says what is wrong
        root = os.path.realpath(folder)
        while left:
            with os.scandir(left.pop()) as entries:
                shown = sorted(
                    (e for e in entries if not e.name.startswith(".")), key=attrgetter("name")
                )
            for entry in shown:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(
                    root
                ):
                    return Path(entry.path)
    return None


def has_files(folder: Path, suffixes: frozenset[str]) -> bool:
    """Whether a folder, or a folder in it, has a file with one of some suffixes."""
    inner = [folder, *(each for each in folder.iterdir() if each.is_dir())]
    return any(files_in(each, suffixes) for each in inner)


def named_by(pipeline: Pipeline) -> tuple[str, ...]:
    """Return the names that a pipeline gives the model's classes, in order; none where it gives none."""
    every = (step.class_names for step in pipeline.after)
    return next((names for names in every if names), ())


def _numbered(folders: Sequence[Path], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return each class folder's label, and the classes' names.

    Args:
        folders: Class folders, sorted.
        names: Names that the pipeline gives the model's classes, in order.
    """
    unknown = [folder for folder in folders if folder.name not in names]
    if len(unknown) == len(folders):
        own, called = (
            [name.casefold() for name in some] for some in ([f.name for f in folders], names)
        )
        distinct = len({*own}) == len(own) and len({*called}) == len(called)
        if own and distinct and {*own} <= {*called}:
            return [called.index(name) for name in own], tuple(names)
        if folders and names and len(names) != len(folders):
            raise InputError(
                f"no folder in {folders[0].parent} has the name of a class, and nothing else says which "
                f"class it is: there are {counted(len(folders), 'class folder')}, such as "
                f"{folders[0].name!r}, and the pipeline's labels are {counted(len(names), 'name')}, such as "
                f"{names[0]!r}. Name each folder as its class's label, or give one folder for each label, "
                "whose names sort in the order of the labels"
            )
        return list(range(len(folders))), tuple(folder.name for folder in folders)
    if unknown:
        raise InputError(
            f"the folder {unknown[0]} has a name that is none of the {len(names)} classes in the "
            "pipeline, although other folders are named after classes: rename it, or remove it"
        )
    counts = Counter(names)
    twice = next((folder for folder in folders if counts[folder.name] > 1), None)
    if twice is not None:
        raise InputError(
            f"the pipeline gives several classes the name of the folder {twice}: "
            "give each class a name of its own"
        )
    places = {name: place for place, name in enumerate(names)}
    return [places[folder.name] for folder in folders], tuple(names)


def numbering(classes: Sequence[str] | None, names: Sequence[str]) -> str:
    """Return the sentence on how classes were numbered; empty where the pipeline's names did it."""
    if not classes or tuple(classes) == tuple(names):
        return ""
    pairs = [f"{number} is {name!r}" for number, name in enumerate(classes)]
    if names:
        pairs = [f"{pair} ({label!r})" for pair, label in zip(pairs, names, strict=True)]
    why = "; the pipeline's labels name none of them" if names else ""
    return f"classes were numbered by the order of the folders' names{why}: {_shown(pairs)}"


def _shown(pairs: list[str]) -> str:
    return ", ".join(pairs if len(pairs) <= _SHOWN else [*pairs[: _SHOWN - 1], "...", pairs[-1]])


def renumbered(
    labels: Array, own: Sequence[str], sealed: Mapping[str, object]
) -> tuple[Array, str]:
    """Number classes as the folders of the data that a bundle was made with, if it states them.

    Of as many folders, each has the class of its place, whatever its name is, unless that is the name of another place.

    Args:
        labels: Labels by the order of the data's own folders, integers `(n,)`.
        own: Names of these folders, in order.
        sealed: Statements of the bundle's manifest on its data.

    Returns:
        The labels, and a sentence on what numbers them; "" where that is the order of the data's own folders.

    Raises:
        InputError: a folder is none of the bundle's.
    """
    known = sealed.get(NUMBERED)
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        return labels, ""
    if len({*known}) < len(known):
        return labels, ""
    moved = any(name in known and known.index(name) != place for place, name in enumerate(own))
    if len(own) == len(known) and not moved:
        return labels, ""
    strange = next((name for name in own if name not in known), None)
    if strange is not None:
        raise InputError(
            f"nothing says which class the folder {strange!r:.80} is: the bundle was made with "
            f"{counted(len(known), 'class folder')}, such as {known[0]!r:.80}, and no labels of the pipeline name "
            "the classes. Name each folder as there"
        )
    places = [known.index(name) for name in own]
    numbers = np.where(labels < 0, labels, np.array(places)[np.maximum(labels, 0)])
    pairs = [f"{place} is {name!r}" for place, name in zip(places, own, strict=True)]
    return (
        numbers,
        f"classes have the numbers of the folders that the bundle was made with: {_shown(pairs)}",
    )


def listed(
    folder: Path, names: Sequence[str], suffixes: frozenset[str], noun: str
) -> tuple[list[Path], list[int] | None, tuple[str, ...] | None]:
    """Return the files, and their labels and class names (both None if there are no class folders).

    Args:
        folder: Folder that holds one folder per class, or files.
        names: Names that the pipeline gives the model's classes, in order.
        suffixes: Suffixes of the files that are samples, in lower case.
        noun: Name of the samples for people, in the plural: "images".

    Raises:
        InputError: there are no files, files both beside and in class folders, an empty class folder, or
            the classes aren't those that the pipeline names.
    """
    loose = files_in(folder, suffixes)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if loose and classes:
        raise InputError(
            f"{folder} has {noun} next to the class folder {classes[0].name}: "
            f"put every {noun.removesuffix('s')} into a class folder, or put none into one; {noun} without a class "
            "go into the folder unlabelled"
        )
    if not loose and not classes:
        raise InputError(f"{folder} has no {noun} ({', '.join(sorted(suffixes))})")
    if loose:
        return loose, None, None
    files: list[Path] = []
    labels: list[int] = []
    known = [inner for inner in classes if inner.name.lower() not in UNLABELLED]
    own, called = _numbered(known, names)
    numbers = dict(zip(known, own, strict=True))
    for inner in classes:
        found = files_in(inner, suffixes)
        if not found:
            raise InputError(f"the class folder {inner} has no {noun}; fill it or remove it")
        files += found
        labels += [numbers.get(inner, NO_NUMBER)] * len(found)
    return files, labels if known else None, called if known else None


def groups_of(folder: Path, files: Sequence[Path]) -> Array | None:
    """Read `groups.csv`, if it exists; spaces around a path and a group's name don't count."""
    table = folder / GROUPS
    if not table.exists():
        return None
    if not table.is_file():
        raise InputError(f"{table} must be a file with lines of `path,group`")
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for _, row in csv_lines(table, lines) if row]
    except OSError as error:
        raise InputError(f"can't read {table}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table} must contain lines of `path,group` in UTF-8: {error}") from error
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise InputError(f"{table}: the line {','.join(wrong)!r} isn't `path,group`")
    names = [str(file.relative_to(folder)) for file in files]
    groups: dict[str, str | None] = dict.fromkeys(names)
    for path, group in rows:
        name, own = path if path in groups else path.strip(), group.strip()
        if name not in groups:
            continue
        before = groups[name]
        if before is not None and before != own:
            raise InputError(
                f"{table} has {name} in two groups, {before!r:.80} and {own!r:.80}: keep one of them"
            )
        groups[name] = own
    for name, found in groups.items():
        if found is None:
            raise InputError(f"{table} has no line for {name}")
        if not found:
            raise InputError(f"{table}: {name} has no group: name one, or a group of its own")
    return np.array([groups[name] for name in names])
