"""Apple's Core ML: programs written from ONNX, and the engine that runs them."""
