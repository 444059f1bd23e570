"""The judge for a device that isn't here: candidates judged on this host, compared by the device's own tools."""
