"""Weights in and out: composing from parts, converting from other formats, exporting for other engines."""
