from hasten_numpy.engine import NumpyEngine

from hasten.testing.engine_tests import EngineTests


class TestNumpyEngine(EngineTests):
    engine = NumpyEngine()
