"""The programs on pages call hasten by names and keywords that it has."""

import ast
import re

from scripts import public

import hasten

PAGES = [
    page
    for pattern in ("README.md", "changes/*.md", "design/*.md", "docs/**/*.md", "examples/**/*.md")
    for page in sorted(public.ROOT.glob(pattern))
]
FENCED = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(hasten\.\w+\([^`]*\))`")


def calls(text: str) -> list[tuple[str, ast.Call]]:
    """Return the calls of public names in a page's programs; sessions with >>> don't parse."""
    found = []
    blocks = [re.sub(f"^{one[1]}", "", one[2], flags=re.MULTILINE) for one in FENCED.finditer(text)]
    for program in [*blocks, *INLINE.findall(text)]:
        try:
            tree = ast.parse(program)
        except SyntaxError:
            continue
        for one in ast.walk(tree):
            name = ast.unparse(one.func) if isinstance(one, ast.Call) else ""
            if isinstance(one, ast.Call) and re.fullmatch(r"hasten\.\w+", name):
                found.append((name.removeprefix("hasten."), one))
    return found


def keywords(name: str) -> list[str]:
    """Return the keywords of a public name; those of options are the fields of an order."""
    _, node = public.definition(f"hasten.{name}")
    if isinstance(node, ast.ClassDef):
        return public.fields(node)
    own = [one.arg for one in public.parameters(node)]
    return [*own, *keywords("Order")] if node.args.kwarg is not None else own


def wrong(text: str) -> list[str]:
    """Return the names and the keywords in a page's programs that hasten doesn't have."""
    found = []
    for name, call in calls(text):
        if name not in hasten.__all__:
            found.append(name)
            continue
        given = [one.arg for one in call.keywords if one.arg is not None]
        found += [f"{name}({one}=)" for one in given if one not in keywords(name)]
    return found


def test_every_call_on_a_page_has_keywords_that_hasten_knows() -> None:
    assert sum(len(calls(page.read_text())) for page in PAGES) > 50
    found = {str(page.relative_to(public.ROOT)): wrong(page.read_text()) for page in PAGES}
    assert {name: some for name, some in found.items() if some} == {}


def test_a_wrong_name_or_keyword_is_found() -> None:
    page = """
- A list:

    ```python title="a.py"
    hasten.lighten(model, train, data, budget_ms=3.0, max_drop=0.01)
    ```

Call `hasten.load(path, thread=1)`.

```python
hasten.loads(Path("m.hasten"))
hasten.chain(nodes, **settings, trusted="release.pub")
hasten.Effort(depth="all", rounds=3)
```

```python
>>> hasten.load(path, thread=1)
```
"""
    assert wrong(page) == ["lighten(budget_ms=)", "loads", "Effort(rounds=)", "load(thread=)"]
