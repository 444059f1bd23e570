"""NVIDIA's TensorRT, and TensorRT for RTX: plans, the checker of models, and both engines."""
