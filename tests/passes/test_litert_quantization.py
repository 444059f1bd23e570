import pytest

from hasten.engines.litert import LiteRt
from hasten.model import Model
from hasten.passes.litert_quantization import LitertQuantization
from hasten.testing.pass_tests import PassTests


class TestLitertQuantization(PassTests):
    bound = 0.05
    engine = LiteRt()

    @pytest.fixture
    def value(self) -> LitertQuantization:
        return LitertQuantization()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise
