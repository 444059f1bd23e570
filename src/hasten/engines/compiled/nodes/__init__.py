"""ONNX's operators as operations of a plan: one function for each, by the operator's name."""
