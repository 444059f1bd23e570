"""Serve the protocol over HTTP/1.1, and the live page."""
