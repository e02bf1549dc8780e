"""Fetches the real umqtt.simple from PyPI, to compare with: its archive has no setup file, so pip can't install it.
Knows one version of it by its checksum.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from midge.boards.simulate import BoardError

VERSION = "1.3.4"
ARCHIVE = f"micropython-umqtt.simple-{VERSION}.tar.gz"
SHA256 = "b6a2520239e3992c63a7de9370ee9b3d9d27819a90359c521f1c0f7ccab8d12f"

_TIMEOUT_S = 30


def fetch(cache: Path) -> Path:
    """The directory to import `umqtt.simple` from, below *cache*, where it stays. `BoardError`: it can't be had."""
    unpacked = cache / ARCHIVE.removesuffix(".tar.gz")
    if (unpacked / "umqtt" / "simple.py").exists():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / ARCHIVE
    if not archive.exists():
        _download(cache)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise BoardError(f"{archive} is not what it was")
    with tarfile.open(archive) as opened:
        # Python before 3.11.4 (Debian 12 has 3.11.2) knows no filters, nor needs one: we know the archive by its hash.
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(cache)
    return unpacked


def _download(cache: Path) -> None:
    beside = Path(sys.executable).with_name("unearth")
    unearth = str(beside) if beside.exists() else shutil.which("unearth")
    if unearth is None:
        raise BoardError("umqtt.simple can't be downloaded: pip install unearth")
    command = [unearth, f"micropython-umqtt.simple=={VERSION}", "--no-binary", "--download", str(cache)]
    try:
        subprocess.run(command, check=True, timeout=_TIMEOUT_S, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BoardError(f"umqtt.simple can't be downloaded ({error}): {' '.join(command)}") from None
