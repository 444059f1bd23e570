"""Values in a project's hasten.toml as a command's options take them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hasten.errors import InputError

_PLACES = frozenset(
    (
        "model",
        "data",
        "training",
        "train",
        "small_model",
        "against",
        "network",
        "source",
        "bundle",
        "bundles",
    )
)
"""Parameters whose text begins with a file or a folder, or is a name."""
_CODE = frozenset(("metric", "report", "engines", "passes", "loss", "ask_labels"))
"""Parameters whose text is a name, or a file with something behind a colon."""
_CODE_ENDINGS = (".py", ".csv", ".parquet")


@dataclass(frozen=True)
class Setting:
    """Value of one parameter of a command.

    Attributes:
        shown: Name of the parameter for people, such as "--max-drop" or "MODEL".
        value: Value for click, of the form that it has on a command line.
        words: Words of a command line that say the same.
    """

    shown: str
    value: Any
    words: tuple[str, ...]


def setting(param: click.Parameter, value: Any, folder: Path) -> Setting | None:
    """Return a value of a file for a command's parameter; None where it says what holds anyway.

    Args:
        param: Parameter of the command.
        value: Value as TOML gives it.
        folder: Folder of the file, which paths in it start from.

    Raises:
        InputError: the parameter doesn't take such a value; the message says what it takes.
    """
    shown = (
        str(param.name).upper() if isinstance(param, click.Argument) else max(param.opts, key=len)
    )
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"it takes true or false, not {_told(value)}")
        # As --no-standby does, a flag may switch off what holds otherwise.
        return Setting(shown, param.flag_value is not False, (shown,)) if value else None
    optional = getattr(param, "_flag_needs_value", False)  # as in --ask-labels, or --ask-labels=csv
    if optional and isinstance(value, bool):
        assert isinstance(param, click.Option)
        return Setting(shown, param.flag_value, (shown,)) if value else None
    several = (
        param.multiple or param.nargs == -1
        if isinstance(param, click.Option)
        else param.nargs == -1
    )
    if several:
        values = value if isinstance(value, list) else [value]
        texts = [_text(param, one, folder) for one in values]
        return Setting(shown, texts, _words(param, shown, texts, optional))
    text = _text(param, value, folder)
    return Setting(shown, text, _words(param, shown, [text], optional))


def _words(param: click.Parameter, shown: str, texts: list[str], optional: bool) -> tuple[str, ...]:
    """Return the words of a command line for the values of a parameter."""
    if isinstance(param, click.Argument):
        return tuple(texts)
    return tuple(
        word
        for text in texts
        for word in ((f"{shown}={text}",) if optional or text.startswith("-") else (shown, text))
    )


def _text(param: click.Parameter, value: Any, folder: Path) -> str:
    """Return one value as it is typed, checked by the parameter's type."""
    kind = param.type
    numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(kind, (click.types.StringParamType, click.Path, click.Choice)):
        if not isinstance(value, str):
            raise InputError(f"it takes text, not {_told(value)}")
        text = value if isinstance(kind, click.Choice) else _from_folder(param, value, folder)
    elif isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        whole = isinstance(kind, click.types.IntParamType)
        if not numbers or (whole and not isinstance(value, int)):
            raise InputError(
                f"it takes {'a whole number' if whole else 'a number'}, not {_told(value)}"
            )
        text = str(value)
    elif isinstance(value, list) and kind.name in ("sizes", "numbers", "shares"):
        text = ",".join(map(str, value))
    elif numbers or isinstance(value, str):
        text = str(value)
    else:
        raise InputError(f"it takes text or a number, not {_told(value)}")
    try:
        kind.convert(text, param, None)
    except click.BadParameter as error:
        raise InputError(error.message.rstrip(".")) from error
    return text


def _told(value: Any) -> str:
    """Return a value of TOML for a message: its kind where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, (str, int, float)) else f"{value}"


def _from_folder(param: click.Parameter, text: str, folder: Path) -> str:
    """Return a text with its paths as the current folder sees them, since the file's folder is meant.

    Names such as "top1", "timm:resnet18" and "package.data:samples" stay as they are.
    """
    name = param.name or ""
    if isinstance(param.type, click.Path):
        return _seen(folder, text)
    if name == "trusted":  # a public key, or its file
        return _seen(folder, text) if (folder / text).is_file() else text
    if name in _CODE:
        head, colon, tail = text.partition(":")
        return f"{_seen(folder, head)}{colon}{tail}" if head.endswith(_CODE_ENDINGS) else text
    if name not in _PLACES or "://" in text:
        return text
    if not name.startswith("bundle"):
        return _place(text, folder)
    served, equals, chain = text.rpartition("=")  # NAME=det.hasten+crop+ocr.hasten
    links = chain.split("+")
    found = [
        _place(link, folder) if Path(link).suffix or len(links) == 1 else link for link in links
    ]
    return f"{served}{equals}{'+'.join(found)}"


def _place(text: str, folder: Path) -> str:
    """Return a text with the file or folder that it begins with, if any, as the current folder sees it."""
    head, colon, tail = text.partition(":")
    named = "/" in head or head.endswith(_CODE_ENDINGS) or (Path(head).suffix and not colon)
    if head and (named or (folder / head).exists()):
        return f"{_seen(folder, head)}{colon}{tail}"
    return text


def _seen(folder: Path, text: str) -> str:
    """Return a path that starts in a folder as a person at the current folder would write it."""
    return text if Path(text).is_absolute() else os.path.relpath(folder / text)
