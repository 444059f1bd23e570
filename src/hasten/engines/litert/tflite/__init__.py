"""Conversion of ONNX models to .tflite files, which LiteRT runs."""
