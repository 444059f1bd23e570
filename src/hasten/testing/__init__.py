"""Conformance suites and small models for tests, in hasten and in plug-ins."""
