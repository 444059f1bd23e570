"""YAML files that a person gives, and that strangers may have written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.core.extras import missing_extra
from hasten.errors import InputError, told, visible

_MOST_DIGITS = 100
"""Most characters of a number: one of up to 100 fits into a float, and can be written out."""
_BOUNDED = (0, 2, 6)
"""First version of libyaml that refuses deeply nested values, which crash earlier ones."""


def read_yaml(path: Path, most_bytes: int, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        most_bytes: Largest size of the file; with what its aliases repeat, its values may be twice as large.
        what: Name of its content, such as "a pipeline", for messages.

    Raises:
        InputError: there is no such file, it is too large, or it isn't YAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_extra(f"the file of {what}", "optimize") from error
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, ValueError) as error:  # a NUL byte in a name is such a ValueError
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} can't be read: {why}") from error
    if len(text) > most_bytes:
        raise InputError(f"{path} has more than {most_bytes:,} bytes, too many for {what}")
    try:
        loader = _loader(yaml)(text)
        node = loader.get_single_node()
        if _size(node, {}) > 2 * most_bytes:
            raise InputError("aliases repeat too much of it: write it out")
        return None if node is None else loader.construct_document(node)
    except InputError as error:
        raise InputError(f"{path} can't be read as YAML: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = visible(" ".join(str(error).split()))
        raise InputError(f"{path} can't be read as YAML: {reason:.300}") from error
    except Exception as error:  # those that read numbers and times raise any
        raise InputError(f"{path} can't be read as YAML: {told(error):.300}") from error


def _loader(yaml: Any) -> Any:
    """Return PyYAML's loader in C, which is ten times as fast, where its libyaml bounds how deeply values nest."""
    if not yaml.__with_libyaml__ or yaml._yaml.get_version() < _BOUNDED:
        return yaml.SafeLoader
    return yaml.CSafeLoader


def _check_keys(parts: Sequence[Any]) -> None:
    """Check that no key of a mapping is given twice: the loader would keep the last one alone.

    It keeps all merges (`<<`), and 1 and "1" are two keys.

    Args:
        parts: Pairs of a mapping's nodes, or the nodes of a list.

    Raises:
        InputError: one is.
    """
    seen: set[tuple[str, str]] = set()
    for key in (part[0] for part in parts if isinstance(part, tuple)):
        if not isinstance(key.value, str) or key.tag.endswith(":merge"):
            continue
        if (key.tag, key.value) in seen:
            raise InputError(f"{visible(key.value):.80} is given twice: leave out one of them")
        seen.add((key.tag, key.value))


def _size(node: Any, known: dict[int, int]) -> int:
    """Return the number of a node's values and characters, each as often as aliases repeat it.

    Args:
        node: Node of PyYAML; None for none.
        known: Sizes of other nodes by their identity; the node's own is added.

    Raises:
        InputError: a number is too long, or a node contains itself.
        UnicodeEncodeError: a text has half of a character, as escapes can write it.
    """
    if node is None:
        return 0
    if id(node) in known:
        if known[id(node)] < 0:
            raise InputError("a value contains itself")
        return known[id(node)]
    known[id(node)] = -1
    if isinstance(node.value, str):
        if node.tag.endswith((":int", ":float")) and len(node.value) > _MOST_DIGITS:
            raise InputError(f"a number has more than {_MOST_DIGITS} characters")
        if not node.value.isascii():
            node.value.encode()  # a surrogate is no character
        size = len(node.value)
    else:  # of a mapping, the nodes are in pairs
        _check_keys(node.value)
        nodes = (
            one for part in node.value for one in (part if isinstance(part, tuple) else (part,))
        )
        size = sum(_size(one, known) for one in nodes)
    known[id(node)] = 1 + size
    return 1 + size
