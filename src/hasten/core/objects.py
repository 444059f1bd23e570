"""Import of objects by their path: "module:name", or "folder/file.py:name"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
