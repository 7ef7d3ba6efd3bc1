"""Files that appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write the file beside its place and move it there. Raises OSError; nothing is left beside it in any case."""
    part = path.with_name(f".{path.name}.partial")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
