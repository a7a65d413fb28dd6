"""Callbacks: the hooks of a run, and those that come with the package."""
