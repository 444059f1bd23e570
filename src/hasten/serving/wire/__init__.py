"""Decode requests from bytes and encode answers to bytes, without sockets or models."""
