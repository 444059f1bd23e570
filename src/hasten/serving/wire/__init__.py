"""Requests out of bytes, answers into bytes: no socket, no model."""
