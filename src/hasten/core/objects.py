"""Import of objects by their path: "module:name", or "folder/file.py:name"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hasten.core.words import amount, type_in_words
from hasten.errors import HastenError, InputError, told


def import_path(cls: type) -> str:
    """Return "module:Class" for a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def load_object(path: str) -> Any:
    """Import the object at "module:name", or at "folder/file.py:name".

    A file is run once per process. Its folder is added at the end of `sys.path`, so that it can
    import its neighbours.

    Raises:
        InputError: there is no such module, file or name, or importing it fails.
    """
    module_name, _, name = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            module = _run_file(Path(module_name))
        else:
            module = importlib.import_module(module_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"can't import {path!r}: {error}") from error
    except HastenError:
        raise
    except Exception as error:  # importing runs the user's own code
        raise InputError(f"can't import {path!r}: {told(error)}") from error
    if not hasattr(module, name):
        raise InputError(f"can't import {path!r}: {module_name} has no {name!r}")
    return getattr(module, name)


def load_function(path: str, what: str, *forms: str) -> Callable[..., Any]:
    """Import the user's function at a path, and check that it can be called.

    Args:
        path: Import path, as for `load_object`.
        what: Noun for the function, for messages: "a metric".
        forms: Arguments of the calls, of which one must be possible: "(outputs, labels)".

    Raises:
        InputError: it can't be imported, is no function, or takes other arguments.
    """
    function = load_object(path)
    if not callable(function):
        raise InputError(f"{path} is {type_in_words(function)}, not a function")
    if not any(can_take(function, form.count(",") + 1) for form in forms):
        required = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        named = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
        takes = f"{amount(len(required) - len(named), 'argument')}{' and ' if named else ''}"
        keywords = ", ".join(f"{name}=" for name in named)
        raise InputError(f"{path} takes {takes}{keywords}; {what} takes {' or '.join(forms)}")
    return function  # type: ignore[no-any-return]


def can_take(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments; True where its signature can't be read."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _run_file(file: Path) -> ModuleType:
    """Import a file by its path."""
    file = file.absolute()
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    name = f"hasten_file_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} can't be imported")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
