"""Checks of a device that run on the device itself, each in a process of its own."""
