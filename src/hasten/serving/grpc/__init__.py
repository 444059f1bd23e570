"""Serve the protocol over gRPC."""
