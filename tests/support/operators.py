"""Libraries of operators that say when they are loaded, and bundles that need one."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import models
from tests.support.bundles import built, stated

from hasten.bundle import write
from hasten.core.records import file_digest
from hasten.engines.base import Engine

REGISTERS = """
#include <stdio.h>
#include <stdlib.h>
#ifdef NEEDED
extern "C" const char* beside();
#else
static const char* beside() { return NAME; }
#endif
__attribute__((constructor)) static void loaded() {
    FILE* log = fopen(getenv("HASTEN_LOADED"), "a");
    fprintf(log, "%s\\n", beside());
    fclose(log);
}
extern "C" const char* mentions() { return "create_extensions"; }
extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
"""
BESIDE = 'extern "C" const char* beside() { return NAME; }'


def compiled(library: Path, name: str, source: str = REGISTERS, *more: str) -> Path:
    """Compile a library that says its name in the log whenever it is loaded."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs the Debian package g++ to compile a library")
    library.parent.mkdir(parents=True, exist_ok=True)
    code = library.with_suffix(".cpp")
    code.write_text(source)
    command = [compiler, "-shared", "-fPIC", f'-DNAME="{name}"', str(code), "-o", str(library)]
    subprocess.run([*command, *more], check=True)
    code.unlink()
    return library


def bundle_with(folder: Path, library: Path, engine: Engine, *more: Path) -> Path:
    made = built(folder, models.identity(folder), engine)
    part = replace(made, custom_ops=tuple(map(file_digest, (library, *more))))
    write(folder / "model.hasten", stated(part, part), {})
    return folder / "model.hasten"


def overwritten(library: Path, other: Path) -> None:
    """Write other bytes into the file itself, as what maps it would see at once."""
    with library.open("r+b") as file:
        file.write(other.read_bytes())
        file.truncate()
