"""One process per store: a lock on a file beside it, which goes with the process however it ends.
Knows no database.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


class FileLock:
    """BlockingIOError: somebody else has it. The file stays; only the lock on it counts."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise BlockingIOError(error.errno, "in use by another process", str(path)) from None

    def release(self) -> None:
        os.close(self._file)
