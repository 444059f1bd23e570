"""The Open Inference Protocol (KServe V2) on the wire: what server and client both speak."""
