"""Hooks for the docs site: pages outside docs/ become part of it, and links between them lead somewhere.

A link is written as it works in the repository, relative to its own file. On the site, a link to a page of the site
leads to that page, and a link to any other file leads to the file at the project's home.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages that stay where people look for them in a repository.
OUTSIDE = ("CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")
# Else the theme asks another site for it.
MERMAID = ROOT / ".venv-docs/package/dist/mermaid.min.js"
FOLDERS = {"Examples": "examples", "Design notes": "design"}
# Code that begins no block and has at most 24 letters.
SHORT = re.compile(r"(?<!<pre>)<code>(?=[^<]{1,24}</code>)")
# A dialog without a name, a landmark for each heading, and a script that asks another site.
MENDED = (
    (re.compile('role="dialog"'), 'role="dialog" aria-label="Search"'),
    (re.compile('<nav class="md-nav" aria-label="[^"]*">'), '<nav class="md-nav" role="none">'),
    (re.compile(' data-md-component="source"'), ""),
)
# What is for readers in the repository alone, and what is for those of the site.
NOT_HERE = re.compile(r"<!-- not on the site -->.*?<!-- end -->\n+", re.DOTALL)
HERE = re.compile(r"<!-- on the site\n(.*?)-->", re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of the folders outside docs/ in the navigation, so that a new page needs no line there."""
    for title, folder in FOLDERS.items():
        config.nav.append({title: [_name(path) for path in _pages(folder)]})
    if MERMAID.exists():
        config.extra_javascript.append(MERMAID.name)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the pictures beside them, under their paths in the repository."""
    pages = [ROOT / name for name in OUTSIDE if (ROOT / name).exists()]
    for folder in FOLDERS.values():
        pages += _pages(folder)
        pages += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".png", ".svg")]
    for path in pages:
        files.append(File.generated(config, _name(path), abs_src_path=str(path)))
    if MERMAID.exists():
        files.append(File.generated(config, MERMAID.name, abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the commands, choose what is for the site, and turn links to paths in the repository into links of the site."""
    markdown = HERE.sub(r"\1", NOT_HERE.sub("", markdown))
    markdown = markdown.replace("<!-- commands -->", "\n".join(_commands()))
    source = Path(page.file.abs_src_path or "")
    if not source.is_relative_to(ROOT):
        return markdown
    known = {file.abs_src_path: file.src_uri for file in files if file.abs_src_path}

    def lead(match: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / match[1])
        if target in known:
            return os.path.relpath(known[target], Path(page.file.src_uri).parent)
        if Path(target).exists() and Path(target).is_relative_to(ROOT):
            return f"{config.repo_url}/tree/main/{Path(target).relative_to(ROOT)}"
        return match[0]  # the generator says that it leads nowhere

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark short code within sentences, which the page's style keeps on one line."""
    return SHORT.sub('<code class="short">', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Mend the theme's HTML for screen readers, and keep pages from asking another site for the project's stars."""
    for theirs, ours in MENDED:
        output = theirs.sub(ours, output)
    return output


def _pages(folder: str) -> list[Path]:
    return sorted(
        (ROOT / folder).rglob("*.md"), key=lambda path: (path.parent != ROOT / folder, path)
    )


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _commands() -> Iterator[str]:
    """Yield the Markdown of every command: its help, and a table of its options as the help shows them."""
    from hasten.cli import main

    top = click.Context(main, info_name="hasten", max_content_width=1000)
    for name in main.list_commands(top):
        command = main.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top)
        yield f"## hasten {name}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        records = (
            option.get_help_record(context)
            for option in command.params
            if option.param_type_name == "option"
        )
        rows = [
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>"
            for name, text in filter(None, records)
        ]
        yield f"<table><thead><tr><th>Option</th><th>Meaning</th></tr></thead><tbody>{''.join(rows)}</tbody></table>\n"
