"""Verilator's own library is compiled once for a suite, and not again with every design."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_SCRIPT = """#!/bin/sh
# Verilator's makefiles put this before each call of the compiler.
set -e
for source; do :; done
case $source in
*/include/verilated*.cpp) ;;
*) exec "$@" ;;
esac
for word; do
    [ "$before" = -o ] && object=$word
    before=$word
done
kept={folder}/$(printf '%s\\n' "$@" | sha256sum | cut -d ' ' -f 1)
if [ ! -e "$kept" ]; then
    "$@"
    cp "$object" "$kept.$$"
    mv "$kept.$$" "$kept"
fi
cp "$kept" "$object"
"""


def keeping_objects(folder: Path) -> Path:
    """Write a program for Verilator's variable OBJCACHE, which keeps the objects of its library in a folder.

    The same call of the compiler makes the same object again; a design's own sources are compiled each time. Several
    processes may share the folder.
    """
    folder.mkdir(exist_ok=True)
    program = folder / "objects"
    part = folder / f"objects.{os.getpid()}"
    part.write_text(_SCRIPT.replace("{folder}", shlex.quote(str(folder))))
    part.chmod(0o755)
    part.replace(program)
    return program
