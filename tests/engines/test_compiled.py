"""The engine that writes a model as C."""

from __future__ import annotations

from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.testing.engine_tests import EngineTests


class TestCompiled(EngineTests):
    """Claims that hold for every engine."""

    engine: Engine = CompiledC()
