"""Every public name has a docstring with its arguments, attributes, units and errors, and its place on the page."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

import hasten

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text()
UNITS = {"_ns": "nanosecond", "_s": "second", "_bytes": "bytes|size"}
Known: TypeAlias = ast.ClassDef | ast.FunctionDef


@cache
def tree(module: str) -> ast.Module:
    path = ROOT.joinpath("src", *module.split("."))
    file = path.with_suffix(".py")
    return ast.parse((file if file.exists() else path / "__init__.py").read_text())


@cache
def found(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Return where a name of a module is defined, through imports; None outside of hasten."""
    if not module.startswith("hasten"):
        return None
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return module, node
    for imported in ast.walk(tree(module)):
        if isinstance(imported, ast.ImportFrom) and imported.module:
            for one in imported.names:
                if (one.asname or one.name) == name:
                    return found(imported.module, one.name)
    return None


def on_the_page() -> dict[str, Known]:
    names = {}
    for path in re.findall(r"^::: (\S+)", PAGE, re.MULTILINE):
        module, _, name = path.rpartition(".")
        there = found(module, name)
        if module == "hasten":
            module, _, attribute = hasten._WHERE[name].partition(":")
            there = found(module, attribute or name)
        assert there is not None, path
        assert isinstance(there[1], ast.ClassDef | ast.FunctionDef), path
        names[f"{there[0]}.{there[1].name}"] = there[1]
    return names


NAMES = on_the_page()


def entries(node: ast.AST, *sections: str) -> dict[str, str]:
    """Return what a docstring's sections say of each name."""
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    said: dict[str, str] = {}
    for section in sections:
        body = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        for name, words in re.findall(
            r"^    \*{0,2}(\w+):((?:.*\n?)(?:^     .*\n?|\n)*)",
            body[1] if body else "",
            re.MULTILINE,
        ):
            said[name] = words
    return said


def arguments(node: ast.FunctionDef) -> list[str]:
    own = node.args
    given = [*own.posonlyargs, *own.args, *own.kwonlyargs]
    return [one.arg for one in given if one.arg not in ("self", "cls")]


def fields(node: ast.ClassDef) -> list[str]:
    declared = [
        ast.unparse(one.target)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
    ]
    return [name for name in declared if not name.startswith("_")]


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and (
            not one.name.startswith("_") or one.name == "__call__"
        ):
            yield one


def test_the_page_has_every_public_name() -> None:
    assert sorted(re.findall(r"^::: hasten\.(\w+)$", PAGE, re.MULTILINE)) == sorted(hasten.__all__)


def test_the_page_has_every_class_that_a_public_function_returns() -> None:
    functions = [(path, one) for path, one in NAMES.items() if isinstance(one, ast.FunctionDef)]
    results = [(path, ast.unparse(one.returns)) for path, one in functions if one.returns]
    assert len(results) > 10
    for path, text in results:
        for name in re.findall(r"\b[A-Z]\w+", text):
            there = found(path.rpartition(".")[0], name)
            if there is not None and isinstance(there[1], ast.ClassDef):
                assert f"{there[0]}.{name}" in NAMES, f"{path} returns {name}"


@pytest.mark.parametrize("path", NAMES)
def test_a_name_says_what_it_takes_has_and_returns(path: str) -> None:
    node = NAMES[path]
    assert ast.get_docstring(node)
    if isinstance(node, ast.FunctionDef):
        said = entries(node, "Args")
        assert [name for name in arguments(node) if name not in said] == []
        text = ast.get_docstring(node) or ""
        assert re.search("^Raises:", text, re.MULTILINE), "what does it raise?"
        nothing = node.returns is not None and ast.unparse(node.returns) == "None"
        assert nothing or re.search("^(Returns|Yields):", text, re.MULTILINE) or len(said) > 3
    else:
        said = entries(node, "Attributes", "Args")
        is_enum = any("Enum" in ast.unparse(base) for base in node.bases)
        assert is_enum or [name for name in fields(node) if name not in said] == []
        for method in methods(node):
            text = ast.get_docstring(method) or ""
            assert text, f"{method.name} has no docstring"
            own = entries(method, "Args")
            several = len(arguments(method)) > 1
            assert not several or [n for n in arguments(method) if n not in own] == []
            if any(isinstance(one, ast.Raise) for one in ast.walk(method)):
                assert re.search("^Raises:", text, re.MULTILINE), f"what does {method.name} raise?"


@pytest.mark.parametrize("path", NAMES)
def test_a_function_takes_at_most_a_dozen_arguments(path: str) -> None:
    """What belongs together is a value with a name, such as `hasten.Access`."""
    node = NAMES[path]
    for one in (node,) if isinstance(node, ast.FunctionDef) else methods(node):
        assert len(arguments(one)) <= 12, one.name


@pytest.mark.parametrize("path", NAMES)
def test_a_quantity_has_its_unit(path: str) -> None:
    for name, words in entries(NAMES[path], "Attributes", "Args").items():
        for end, unit in UNITS.items():
            if name.endswith(end):
                assert re.search(unit, words, re.IGNORECASE), f"{name}:{words}"
