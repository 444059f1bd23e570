"""Every public name has a docstring with its arguments, attributes, units and errors, and its place on the page."""

import ast
import builtins
import re
from collections.abc import Iterator

import pytest
from scripts import public

import hasten

PAGE = public.PAGE.read_text()
NAMES = public.names()
SHORT = {path.rpartition(".")[2] for path in NAMES}
UNITS = {"_ns": "nanosecond", "_s": "second", "_bytes": "bytes|size"}
SOURCES = public.ROOT / "src" / "hasten"
PAGES = [
    page
    for pattern in ("README.md", "docs/**/*.md", "examples/**/*.md")
    for page in sorted(public.ROOT.glob(pattern))
]
ARRAYS = re.compile(r"\b(Array|Tensors|Tensor|ndarray)\b")


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


def arguments(node: public.Function) -> list[str]:
    return [one.arg for one in public.parameters(node)]


def test_the_page_has_every_public_name() -> None:
    assert sorted(re.findall(r"^::: hasten\.(\w+)$", PAGE, re.MULTILINE)) == sorted(hasten.__all__)


def returned() -> dict[str, str]:
    """Return the classes that public functions return, by their path, and one such function each."""
    classes = {}
    for path, node in NAMES.items():
        result = node.returns if isinstance(node, public.Function) else None
        for name in re.findall(r"\b[A-Z]\w+", ast.unparse(result) if result else ""):
            there = public.found(path.rpartition(".")[0], name)
            if there is not None and isinstance(there[1], ast.ClassDef):
                classes[f"{there[0]}.{name}"] = path
    return classes


def test_the_page_has_every_class_that_a_public_function_returns() -> None:
    assert len(returned()) > 10
    assert {name: path for name, path in returned().items() if name not in NAMES} == {}


def test_the_page_has_every_kind_of_a_class_that_a_public_function_returns() -> None:
    kinds, short = set(), {path.rpartition(".")[2] for path in returned()}
    for file in (public.ROOT / "src" / "hasten").rglob("*.py"):
        module = ".".join(file.relative_to(public.ROOT / "src").with_suffix("").parts)
        classes = re.findall(r"^class ([A-Z]\w*)\((\w+)\):", file.read_text(), re.MULTILINE)
        for name, base in classes:
            there = public.found(module, base) if base in short else None
            if there is not None and f"{there[0]}.{base}" in returned():
                kinds.add(f"{module}.{name}")
    assert kinds
    assert sorted(kinds - NAMES.keys()) == []


def test_the_page_has_every_error_and_warning_that_a_docstring_names() -> None:
    named = {
        name
        for node in NAMES.values()
        for one in [node, *(public.methods(node) if isinstance(node, ast.ClassDef) else ())]
        for name in entries(one, "Raises", "Warns")
    }
    assert {"InputError", "TimeoutError"} <= named
    assert [
        name for name in sorted(named) if name not in SHORT and not hasattr(builtins, name)
    ] == []


def test_the_page_has_every_name_that_a_program_on_a_page_imports() -> None:
    """Steps are on pages of their own, with their settings."""
    lost = []
    for page in PAGES:
        for module, listed in re.findall(
            r"^ *from (hasten[\w.]*) import (.+)$", page.read_text(), re.MULTILINE
        ):
            for name in listed.split(", "):
                there = public.found(module, name)
                bases = [ast.unparse(base) for base in getattr(there and there[1], "bases", ())]
                if there is None or not {"Step", "PostStep"} & set(bases):
                    known = there is not None and f"{there[0]}.{name}" in NAMES
                    lost += [] if known else [f"{page.name}: {module}.{name}"]
    assert lost == []


def lacks(node: public.Function, *, alone: bool) -> list[str]:
    """Return what a docstring doesn't say.

    Args:
        node: Definition of a function or a method, which may be a property.
        alone: Whether it is a function of a module, which says in sections what it returns and raises.
    """
    text, said = ast.get_docstring(node) or "", entries(node, "Args")
    decorators = " ".join(ast.unparse(one) for one in node.decorator_list)
    given = public.parameters(node)
    missing = [one.arg for one in given if one.arg not in said]
    returned = ast.unparse(node.returns) if node.returns else "None"
    told = bool(re.search("^(Returns|Yields):", text, re.MULTILINE)) or "property" in decorators
    told = told or (len(said) > 3 if alone else bool(re.match("Return |Whether ", text)))
    if returned != "None" and not told:
        missing.append("what it returns")
    raises = alone or any(isinstance(one, ast.Raise) for one in ast.walk(node))
    if raises and not re.search("^Raises:", text, re.MULTILINE):
        missing.append("what it raises")
    kinds = " ".join(ast.unparse(one.annotation) for one in given if one.annotation)
    if ARRAYS.search(f"{kinds} {returned}") or "arrays" in arguments(node):
        missing += [word for word in ("shape", "dtype") if word not in text]
    return missing


@pytest.mark.parametrize("path", NAMES)
def test_a_name_says_what_it_takes_has_and_returns(path: str) -> None:
    node = NAMES[path]
    assert ast.get_docstring(node)
    if isinstance(node, public.Function):
        assert lacks(node, alone=True) == []
        return
    said = entries(node, "Attributes", "Args")
    is_enum = any("Enum" in ast.unparse(base) for base in node.bases)
    assert is_enum or [name for name in public.fields(node) if name not in said] == []
    begin = [
        one for one in node.body if isinstance(one, public.Function) and one.name == "__init__"
    ]
    assert [name for one in begin for name in arguments(one) if name not in said] == []
    methods = {one.name: one for one in public.methods(node)}
    assert [name for name, one in methods.items() if not ast.get_docstring(one)] == []
    missing = {name: lacks(one, alone=False) for name, one in methods.items()}
    assert {name: some for name, some in missing.items() if some} == {}


@pytest.mark.parametrize("path", NAMES)
def test_a_function_takes_at_most_a_dozen_arguments(path: str) -> None:
    """What belongs together is a value with a name, such as `hasten.Access`."""
    node = NAMES[path]
    for one in (node,) if isinstance(node, public.Function) else public.methods(node):
        assert len(arguments(one)) <= 12, one.name


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements inside one after another; `ast.walk` goes through all expressions, too."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(tree, field, ())
        for one in inner if isinstance(inner, list) else ():
            yield one
            yield from statements(one)


@pytest.mark.seconds
def test_no_function_inside_takes_more() -> None:
    counts = [
        (f"{path.relative_to(SOURCES)}: {node.name}", len(arguments(node)))
        for path in SOURCES.rglob("*.py")
        for node in statements(ast.parse(path.read_text()))
        if isinstance(node, public.Function)
    ]
    assert len(counts) > 1000
    assert [name for name, count in counts if count > 12] == []


@pytest.mark.parametrize("path", NAMES)
def test_a_quantity_has_its_unit(path: str) -> None:
    for name, words in entries(NAMES[path], "Attributes", "Args").items():
        for end, unit in UNITS.items():
            if name.endswith(end):
                assert re.search(unit, words, re.IGNORECASE), f"{name}:{words}"


QUESTION = re.compile(r"(?:\*{0,2}\w+: )?(?:What|Who|Whom|Whose|How)\b")
"""Words with which a line doesn't say by itself what a thing is; see design/style.md."""


@pytest.mark.seconds
def test_no_docstring_and_no_line_on_an_attribute_begins_like_a_question() -> None:
    found = [
        f"{path.relative_to(SOURCES)}: {line}"
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in stated(node.value.value)
        if QUESTION.match(line)
    ]
    assert found == []


def stated(text: object) -> list[str]:
    """Return the first line of a docstring, and the lines that begin with the name of an attribute."""
    if not isinstance(text, str):
        return []
    first, *others = text.splitlines()
    return [first, *(line.strip() for line in others if re.match(r" +\*{0,2}\w+: ", line))]
