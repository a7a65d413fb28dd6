"""For `mkdocs build`: a copy of the sources laid out as installed, for the API reference to read.

The folder kernels/ is imported as mt2st_fast.kernels (see pyproject.toml), which a tool that reads sources without
importing them cannot know.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
_folder = tempfile.TemporaryDirectory(prefix="mt2st-fast-docs-")


@event_priority(100)  # before the plugin that reads it
def on_config(config: Any) -> Any:
    """Called by mkdocs before it builds."""
    place = Path(_folder.name)
    for name, target in (("mt2st_fast", "mt2st_fast"), ("kernels", "mt2st_fast/kernels")):
        shutil.copytree(
            ROOT / name, place / target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(place)]
    return config
