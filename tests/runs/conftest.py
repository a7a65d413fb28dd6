"""Data for runs."""

from __future__ import annotations

from tests.cli.conftest import treebank

__all__ = ["treebank"]
