"""A folder that one run at a time writes to."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mt2st_fast.errors import InputError

LOCK_FILE = ".lock"

logger = logging.getLogger(__name__)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes. The lock dies with its process, however that ends.

    Raises InputError while another one holds it.
    """
    # The file stays: whoever removed it could take it from under one who has just opened it.
    with (folder / LOCK_FILE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {folder}; wait for its end or choose another --out"
            ) from None
        except OSError as error:  # a file system that has no locks
            logger.warning("%s cannot be locked (%s): start no other run into it", folder, error.strerror)
        yield
