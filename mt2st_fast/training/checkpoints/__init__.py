"""Checkpoints: written, read, and what a resumed run must have in common with them."""
