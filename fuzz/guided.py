"""Let coverage guide the changes, by the package atheris: an input that reaches new code is changed further."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from types import FunctionType

from fuzz.surface import MOST_BYTES, Surface


def guided(surface: Surface, seconds: float, seed: int, findings: Path) -> None:
    """Change inputs for a few seconds in this process; atheris ends it, with 77 where one does harm."""
    import atheris

    findings.mkdir(parents=True, exist_ok=True)
    seeds = surface.seeds()
    for function in functions(surface.covers):
        atheris.instrument_func(function)

    def changed(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        try:
            return surface.mutate(rng, data)[:most]
        except (
            Exception
        ):  # what was changed once may be no seed that can be changed by its structure
            return surface.mutate(rng, rng.choice(seeds))[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds):
            Path(folder, str(number)).write_bytes(data)
        words = (f"-max_total_time={seconds:.0f}", f"-seed={seed}", "-rss_limit_mb=4096")
        given = [
            sys.argv[0],
            *words,
            f"-max_len={MOST_BYTES}",
            f"-artifact_prefix={findings}/{surface.name}-",
            folder,
        ]
        atheris.Setup(given, surface.check, custom_mutator=changed)
        atheris.Fuzz()


def functions(begin: str) -> list[FunctionType]:
    """Return the functions and methods of all modules that are imported and whose names begin so."""
    modules = [module for name, module in sys.modules.items() if name.startswith(begin)]
    own = [one for module in modules for one in vars(module).values()]
    methods = [one for cls in own if isinstance(cls, type) for one in vars(cls).values()]
    found = {id(one): one for one in (*own, *methods) if isinstance(one, FunctionType)}
    return [one for one in found.values() if one.__module__.startswith(begin)]
