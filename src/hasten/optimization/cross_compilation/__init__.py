"""The run for a device that isn't here: what its own tools tell, and a certificate where answers are the device's."""
