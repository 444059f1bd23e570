"""Chains as people write them: a line such as `det.hasten+crop+ocr.hasten`, or a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.core.presence import is_file, is_folder, path_text
from hasten.core.records import from_record
from hasten.core.yaml_files import read_yaml
from hasten.errors import InputError, IntegrityError, visible
from hasten.inputs.chains.graph import Chain
from hasten.inputs.chains.nodes import SOURCE, Crop, Model, Node

SUFFIXES = (".yaml", ".yml")
MOST_BYTES = 64 << 10
"""Largest size of a chain's file."""
_ADDRESSES = ("http:/", "https:/")
"""Beginnings of addresses, of which a `Path` keeps one slash."""
_MAIN = {"model": "bundle", "crop": "boxes", "when": "decision"}
"""Setting that stands after a node's kind in a file, as in `model: det.hasten`."""


def is_chain(path: str | os.PathLike[str]) -> bool:
    """Whether a text names a chain, by a line or a file, and not one bundle's folder, packed file or address.

    Raises:
        InputError: it is no path.
    """
    text = path_text(path)
    if text.startswith(_ADDRESSES) or is_folder(text):
        return False
    return text.endswith(SUFFIXES) or ("+" in text and not is_file(text))


def models_in_words(path: str | os.PathLike[str]) -> str:
    """Name the bundles of a chain, or "its bundles" where it can't be read."""
    try:
        return ", ".join(dict.fromkeys(model.bundle for model in chain_of(path).models))
    except InputError:
        return "its bundles"


def chain_of(given: Chain | Sequence[Node] | str | os.PathLike[str]) -> Chain:
    """Return a chain from any form in which it may be given.

    Args:
        given: A chain, its nodes, the path of a YAML file, or a line of bundles and `crop`.

    Raises:
        InputError: it is none of these or can't be read, or its nodes don't fit each other.
    """
    if isinstance(given, Chain):
        return given
    if isinstance(given, (str, os.PathLike)):
        text = os.fspath(given)
        return from_yaml(Path(text)) if text.endswith(SUFFIXES) else from_line(text)
    nodes = [one for one in given if isinstance(one, Node)] if isinstance(given, Sequence) else None
    if nodes is None or len(nodes) < len(given):
        raise InputError(
            "a chain must be a line such as det.hasten+crop+ocr.hasten, a file chain.yaml, a Chain, or its nodes: "
            f"got {given!r:.100}"
        )
    return Chain(tuple(nodes))


def from_line(line: str) -> Chain:
    """Read a line such as `det.hasten+crop+ocr.hasten`: bundles with `crop` between them.

    A model's name is that of its folder without the ending; a second one of that name gets a
    number.

    Raises:
        InputError: there is something other than `crop` between two bundles.
    """
    words = [word.strip() for word in line.split("+")]
    nodes: list[Node] = []
    source = SOURCE
    for place, word in enumerate(words):
        wanted = place % 2 == 1
        if not word or (word == "crop") != wanted or (wanted and place == len(words) - 1):
            raise InputError(
                f"{line!r:.200} isn't a chain: give bundles with crop between them, such as "
                "det.hasten+crop+ocr.hasten, or a chain.yaml"
            )
        node: Node
        if wanted:
            node = Crop(_free("crop", nodes), source)
        else:
            plain = re.sub(r"[^A-Za-z0-9_-]", "_", Path(word).name.removesuffix(".hasten"))[:60]
            node = Model(_free(plain, nodes), word, source)
        nodes.append(node)
        source = node.name
    return Chain(tuple(nodes))


def from_yaml(path: Path) -> Chain:
    """Read a file with one node per name, such as

        cars: {model: det.hasten}
        car: {crop: cars, labels: [car], margin: 0.1}
        kind: {model: kinds.hasten, source: car}

    Bundles' paths are relative to the file's folder.

    Raises:
        InputError: there is no such file, it isn't YAML or too large, a setting is unknown or can't
            be used, or the nodes don't fit each other.
    """
    given = read_yaml(path, MOST_BYTES, "a chain")
    if not isinstance(given, dict) or not given:
        raise InputError(f"{path}: give one node per name, as in `cars: {{model: det.hasten}}`")
    try:
        return Chain(tuple(_node(str(name), said, path.parent) for name, said in given.items()))
    except (InputError, IntegrityError) as error:
        raise InputError(f"{path}: {error}") from error


def _node(name: str, said: Any, folder: Path) -> Node:
    """Read one node of a file."""
    kinds = [kind for kind in _MAIN if isinstance(said, dict) and kind in said]
    if len(kinds) != 1:
        raise InputError(f"{visible(name):.80}: say what it is with one of {', '.join(_MAIN)}")
    (kind,) = kinds
    settings = {key: value for key, value in said.items() if key != kind}
    if clash := {"type", "name", _MAIN[kind]} & settings.keys():
        raise InputError(f"{visible(name):.80}: a {kind} has no setting {min(clash)}")
    value = said[kind]
    if kind == "model" and isinstance(value, str):
        value = os.fspath(folder / value)
    try:
        return from_record(Node, {"type": kind, "name": name, _MAIN[kind]: value, **settings})
    except IntegrityError as error:
        raise InputError(f"{visible(name):.80}: {error}") from error


def _free(name: str, nodes: Sequence[Node]) -> str:
    """Return a name that no node has yet: the given one, or with a number behind it."""
    taken = {node.name for node in nodes}
    tried, number = name, 1
    while tried in taken:
        number += 1
        tried = f"{name}_{number}"
    return tried
