"""What hasten says to its users in code: docstrings of public names, messages of errors, help of commands.

Public are the names on the page docs/reference/python.md. Nothing but the command line is imported.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
PAGE = ROOT / "docs" / "reference" / "python.md"
Line: TypeAlias = tuple[str, str]
"""A line's place, such as "src/hasten/errors.py:7", and its text."""
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Known: TypeAlias = ast.ClassDef | Function
PLACEHOLDER = "`x`"


@cache
def module_file(module: str) -> Path:
    path = ROOT.joinpath("src", *module.split("."))
    file = path.with_suffix(".py")
    return file if file.exists() else path / "__init__.py"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(module_file(module).read_text())


@cache
def found(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Return where a name of a module is defined, through imports; None outside of hasten."""
    if not module.startswith("hasten"):
        return None
    for node in tree(module).body:
        if isinstance(node, Known) and node.name == name:
            return module, node
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return module, node
    for imported in ast.walk(tree(module)):
        if isinstance(imported, ast.ImportFrom) and imported.module:
            for one in imported.names:
                if (one.asname or one.name) == name:
                    return found(imported.module, one.name)
    return None


def definition(path: str) -> tuple[str, Known]:
    """Return where a public class or function is defined, such as that of "hasten.load"."""
    import hasten

    module, _, name = path.rpartition(".")
    if module == "hasten":
        module, _, attribute = hasten._WHERE[name].partition(":")
        name = attribute or name
    there = found(module, name)
    assert there is not None, path
    assert isinstance(there[1], Known), path
    return f"{there[0]}.{there[1].name}", there[1]


def names() -> dict[str, Known]:
    """Return the classes and functions of the API's page by the path of their definition."""
    return dict(map(definition, re.findall(r"^::: (\S+)", PAGE.read_text(), re.MULTILINE)))


def parameters(node: Function) -> list[ast.arg]:
    """Return the parameters of a function, without an object of its own."""
    own = node.args
    given = [*own.posonlyargs, *own.args, own.vararg, *own.kwonlyargs, own.kwarg]
    return [one for one in given if one is not None and one.arg not in ("self", "cls")]


def fields(node: ast.ClassDef) -> list[str]:
    """Return the names of a class's public fields."""
    declared = [
        ast.unparse(one.target)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
    ]
    return [name for name in declared if not name.startswith("_")]


def methods(node: ast.ClassDef) -> Iterator[Function]:
    """Yield the public methods and properties of a class, and its calls."""
    for one in node.body:
        if isinstance(one, Function) and (not one.name.startswith("_") or one.name == "__call__"):
            yield one


def docstrings() -> Iterator[Line]:
    """Yield the docstrings of public names and of their methods, with an empty line after each."""
    for path, node in names().items():
        file = module_file(path.rpartition(".")[0]).relative_to(ROOT)
        for one in [node, *(methods(node) if isinstance(node, ast.ClassDef) else ())]:
            text = ast.get_docstring(one)
            for at, line in enumerate(text.splitlines() if text else ()):
                yield f"{file}:{one.body[0].lineno + at}", line
            yield f"{file}:{one.lineno}", ""


def messages() -> Iterator[Line]:
    """Yield the texts of raised errors; a placeholder stands for what a message fills in."""
    for file in sorted((ROOT / "src" / "hasten").rglob("*.py")):
        source = file.read_text()
        walked = statements(ast.parse(source).body) if "raise " in source else ()
        raised = [one.exc for one in walked if isinstance(one, ast.Raise) and one.exc is not None]
        for text, line in [said for one in raised for said in texts(one)]:
            yield f"{file.relative_to(ROOT)}:{line}", " ".join(text.split())
            yield f"{file.relative_to(ROOT)}:{line}", ""


def statements(body: list[Any]) -> Iterator[ast.AST]:
    """Yield statements and those inside of them, which is far quicker than to walk expressions too."""
    for one in body:
        yield one
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            yield from statements(getattr(one, part, []))


def texts(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the texts of more than a word in an expression, each with its line."""
    if isinstance(node, ast.JoinedStr):
        parts = [one.value if isinstance(one, ast.Constant) else PLACEHOLDER for one in node.values]
        yield "".join(map(str, parts)), node.lineno
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and " " in node.value.strip():
            yield node.value, node.lineno
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def helps() -> Iterator[Line]:
    """Yield the help of every command and of its options, with an empty line after each."""
    from hasten.cli import main
    from hasten.inputs.metrics.choice import forms
    from hasten.inputs.set_metrics.choice import set_forms

    for said, text in described(main, "hasten"):
        for listed in (forms(), set_forms()):  # lists, which are no sentences
            text = text.replace(listed, "a form")
        yield from ((f"{said} --help", line) for line in [*text.splitlines(), ""])


def described(command: Any, name: str) -> Iterator[Line]:
    """Yield the texts of a command's help, and of its own commands', by what they describe."""
    yield name, inspect.cleandoc(command.help or "")
    for option in command.params:
        yield f"{name} {option.opts[0]}", getattr(option, "help", None) or ""
    for own, below in getattr(command, "commands", {}).items():
        yield from described(below, f"{name} {own}")
