"""OpenVINO's IR as an ONNX graph of bytes, for the same lowering."""
