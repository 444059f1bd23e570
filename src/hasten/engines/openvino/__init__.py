"""OpenVINO on the CPU, on an integrated GPU and on an NPU."""
