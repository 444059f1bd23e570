"""Engines that run on an NVIDIA GPU through CUDA: torch and ONNX Runtime."""
