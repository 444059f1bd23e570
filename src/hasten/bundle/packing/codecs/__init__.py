"""Codecs of a packed bundle, one file each: `hasten.bundle.packing.codecs.base` is their contract."""
