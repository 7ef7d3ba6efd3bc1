"""Writing a trace file whole or not at all."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from sagasim.errors import TraceError

__all__ = ["write_whole"]


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> Path:
    """Call `write` with a stream whose content becomes the file, unless it raises; gzip if the name ends in .gz.

    The same content gives the same bytes. Raises TraceError if the file exists or its folder cannot be written.
    """
    if os.path.lexists(path):
        raise TraceError("exists already", where=str(path), expected="the name of a new file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise TraceError(what, where=str(path), expected="a folder that can be written") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
                    write(stream)  # type: ignore[arg-type]
            else:
                write(raw)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise TraceError(what, where=str(path), expected="room for the file") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path
