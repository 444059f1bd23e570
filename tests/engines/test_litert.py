from hasten.engines.litert import LiteRt
from hasten.testing.engine_tests import EngineTests


class TestLiteRt(EngineTests):
    engine = LiteRt()
