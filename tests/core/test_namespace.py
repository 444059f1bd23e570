"""The names that `import hasten` offers, whatever was imported before."""

import importlib
import subprocess
import sys

import pytest

import hasten


@pytest.mark.seconds
def test_no_room_replaces_a_function() -> None:
    code = (
        "import importlib, pkgutil, hasten\n"
        "for room in pkgutil.iter_modules(hasten.__path__):\n"
        "    importlib.import_module(f'hasten.{room.name}')\n"
        "print([n for n in hasten.__all__ if not callable(getattr(hasten, n))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_dir_lists_the_public_names_alone() -> None:
    importlib.import_module("hasten.core.target")  # which makes a room an attribute of the package
    listed = dir(hasten)
    assert [name for name in listed if not name.startswith("__")] == sorted(hasten.__all__)
    assert {"__all__", "__doc__", "__name__", "__version__"} <= {*listed}
