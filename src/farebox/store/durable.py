"""What outlives a power cut: contents of files, and names in directories, which are durable by themselves."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory, and those above it, whose names outlive a power cut. Raises OSError."""
    if not path.is_dir():
        make_directory(path.parent, mode)
        path.mkdir(mode=mode, exist_ok=True)
        sync(path.parent)
