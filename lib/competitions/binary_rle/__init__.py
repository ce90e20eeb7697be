"""Masks of one class, answered as run-length text."""
