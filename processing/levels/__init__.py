"""Alignment levels: how scores are cut, and the data that come out."""
