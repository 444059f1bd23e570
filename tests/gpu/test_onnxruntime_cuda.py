from hasten.engines.onnxruntime_cuda import OnnxRuntimeCuda
from hasten.testing.engine_tests import EngineTests


class TestOnnxRuntimeCudaOverThisHost(EngineTests):
    engine = OnnxRuntimeCuda()
