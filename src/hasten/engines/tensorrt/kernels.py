"""Kernels that TensorRT for RTX compiles on the GPU when a plan is first run, kept for the next start."""

from __future__ import annotations

from typing import Any

from hasten.engines.compile_cache import CompileCache


class KeptKernels:
    """Cache of compiled kernels of one plan on one GPU; it must outlive the plan's contexts.

    The library refuses kernels of another GPU, driver or version by itself, and compiles again.

    Args:
        compiled: Cache of the bundle; only what this user wrote is ever read from it.
        key: Key of the plan, the GPU, its driver and the library's version.
    """

    def __init__(self, compiled: CompileCache, key: str) -> None:
        self._compiled, self._key = compiled, key
        self._kernels: Any = None
        self._size = 0

    def attach(self, config: Any) -> None:
        """Have contexts of a configuration take their kernels from the cache, and add to it."""
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            with self._compiled.entry(self._key) as found:
                if found is not None and self._kernels.deserialize(found.content):
                    self._size = len(found.content)
                elif found is not None:
                    self._compiled.drop(self._key)
        config.set_runtime_cache(self._kernels)

    def keep(self) -> None:
        """Keep the kernels, if some were compiled that weren't kept yet."""
        if self._kernels is None:
            return
        made = bytes(memoryview(self._kernels.serialize()))
        if len(made) > self._size:
            self._compiled.put(self._key, made)
            self._size = len(made)
