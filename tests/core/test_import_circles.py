"""No file imports, directly or by others, a file that imports it, when Python reads it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import hasten

SOURCE = Path(hasten.__file__).parent


def _named(file: Path) -> str:
    parts = ("hasten", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each import that runs as the file is read."""
    for one in body:
        if isinstance(one, ast.Import):
            yield from ((each.name, "") for each in one.names)
        elif isinstance(one, ast.ImportFrom) and not one.level:
            yield from ((one.module or "", each.name) for each in one.names)
        elif isinstance(one, ast.If) and ast.unparse(one.test) != "TYPE_CHECKING":
            yield from _imported([*one.body, *one.orelse])
        elif isinstance(one, ast.Try | ast.With):
            yield from _imported(one.body)


def circle_of(texts: dict[str, str]) -> list[str]:
    """Return the modules of one circle, the first again at its end; none where there is none.

    Args:
        texts: Text of each module by its full name.
    """
    graph: dict[str, set[str]] = {}
    for name, text in texts.items():
        found = set()
        for module, what in _imported(ast.parse(text).body):
            found.add(f"{module}.{what}" if f"{module}.{what}" in texts else module)
        graph[name] = {one for one in found & texts.keys() if not name.startswith(f"{one}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    texts = {_named(file): file.read_text() for file in SOURCE.rglob("*.py")}
    assert len(texts) > 500
    assert circle_of(texts) == []


def test_a_circle_is_found_and_one_for_types_is_none() -> None:
    texts = {
        "h.a": "from h import b",
        "h.b": "try:\n    from h.c import x\nexcept ImportError:\n    pass",
        "h.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import h.a",
    }
    assert circle_of(texts) == []
    texts["h.c"] = "import h.a"
    assert {"h.a", "h.b", "h.c"} == set(circle_of(texts))
