"""Alignment scores: the dual encoder, the preparation of pairs, and the folder in which a corpus is scored."""
