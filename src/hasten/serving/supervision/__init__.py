"""The process that serves, and the one that keeps it."""
