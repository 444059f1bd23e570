"""LiteRT, the runtime of TFLite files, and the converter that writes them from ONNX."""
