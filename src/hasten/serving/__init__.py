"""The real-time server: any client of the Open Inference Protocol, from bundles alone."""
