"""Where this package keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for this package in the user's cache. It may be missing, and not writable."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "mt2st-fast"
    home = Path(os.path.expanduser("~"))
    # A user without a home, as in some containers, has that of shells there; ~ would be a name like any other.
    return Path(home if home.is_absolute() else home.absolute().root) / ".cache" / "mt2st-fast"
