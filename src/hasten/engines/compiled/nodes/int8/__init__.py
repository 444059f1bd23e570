"""ONNX's operators between a DequantizeLinear and a QuantizeLinear, over bytes."""
