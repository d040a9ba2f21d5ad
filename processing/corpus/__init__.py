"""Corpora: sources, their files, what a record means, and how its pictures are opened."""
