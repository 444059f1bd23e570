"""ONNX models as .tflite files, which LiteRT runs."""
