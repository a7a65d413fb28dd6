"""A lock on a folder, so that only one run at a time writes to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mt2st_fast.errors import InputError

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes. The lock ends with its process, however that ends.

    Raises InputError while another process holds it.
    """
    # The folder itself is locked: no lock file is left behind, and none can be deleted while another run needs it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            if fcntl is None:
                raise OSError(0, "this system has no file locks")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {folder}; wait until it ends or choose another --out"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s); do not start another run that writes to it", folder, error.strerror
            )
        yield
    finally:
        os.close(descriptor)
