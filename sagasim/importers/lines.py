"""Lines of JSON from files nobody has checked: reading with limits, and the checks of single values.

Every error names file and line. A line longer than LINE_BYTES is refused while it is read, and one that would
fill more than LINE_OBJECT_BYTES as Python objects before it is decoded, so that a small gzip file that unpacks to much
costs little memory.
"""

from __future__ import annotations

import gzip
import math
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from sagasim.core import MAX_DURATION_PS, MAX_TOKENS
from sagasim.errors import TraceError
from sagasim.units import ps_from_s

__all__ = [
    "LINE_BYTES",
    "MAX_ROWS",
    "MAX_SECONDS",
    "duration",
    "mapping",
    "number",
    "object_bytes",
    "optional_seconds",
    "parse",
    "parse_text",
    "printable",
    "raw_lines",
    "read_document",
    "read_lines",
    "sequence",
    "text",
    "tokens",
    "whole",
]

LINE_BYTES = 64 * 2**20
LINE_OBJECT_BYTES = 512 * 2**20  # of one line as Python objects
EMPTY_LINES = 100_000  # one after the other; no file has so many, but a gzip member of them takes no room
MAX_ROWS = 2_000_000  # of a file that is held in memory as a whole
NAME_CHARACTERS = 400
MAX_SECONDS = MAX_DURATION_PS / 10**12

_GZIP_MAGIC = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # that some programs put before UTF-8


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path), expected="a trace file") from None
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", where=str(path), expected="a trace file") from None
    except ValueError:  # a NUL within the name
        raise TraceError("not a name of a file", where=repr(str(path)), expected="a trace file") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise TraceError(what, where=str(path), expected="a trace file")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of a file of JSON lines.

    One empty line at the end is skipped, any other is an error. A file without lines is an error.
    """
    empty = 0
    count = 0
    for count, line in raw_lines(path):
        if empty:
            raise TraceError("an empty line", where=f"{path}:{empty}", expected="one JSON object per line")
        if line.isspace():
            empty = count
        else:
            yield count, line
    if count == (1 if empty else 0):
        raise TraceError("an empty file", where=str(path), expected="at least one line of JSON")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of any text file, plain or gzip as its first bytes say; empty lines too.

    A byte order mark of UTF-8 is left out.
    """
    _check_regular(path)
    number = empty = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
            for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), start=1):
                if len(line) > LINE_BYTES:
                    expected = f"at most {LINE_BYTES >> 20} MiB a line"
                    raise TraceError("a line that is too long", where=f"{path}:{number}", expected=expected)
                empty = empty + 1 if line.isspace() else 0
                if empty > EMPTY_LINES:
                    what = f"{EMPTY_LINES:,} empty lines"
                    raise TraceError(what, where=f"{path}:{number}", expected="lines that say something")
                yield number, line.removeprefix(_MARK) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(
            f"broken gzip ({error})", where=f"{path}:{number + 1}", expected="a complete gzip file"
        ) from None
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", where=str(path), expected="a readable file") from None


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object that is spread over all lines of a file, LINE_BYTES at most."""
    whole = bytearray()  # not a list of lines: of short ones it would be many times the file
    for _, line in raw_lines(path):
        whole += line
        if len(whole) > LINE_BYTES:
            expected = f"at most {LINE_BYTES >> 20} MiB in one document, or one JSON object per line"
            raise TraceError("a document that is too long", where=str(path), expected=expected)
    return parse(bytes(whole), str(path))


def parse(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        value = parse_text(line, where)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise TraceError("not text", where=where, expected="one JSON object per line, in UTF-8") from None
        what = "the file ends inside a line" if not line.endswith(b"\n") else "not JSON"
        raise TraceError(f"{what} ({str(error)[:80]})", where=where, expected="one JSON object per line") from None
    if type(value) is not dict:
        raise TraceError(f"{_kind(value)} instead of an object", where=where, expected="one JSON object per line")
    return value


def parse_text(line: bytes, where: str) -> Any:
    """The value of a JSON text; ValueError where it is none, TraceError where it is too much to decode."""
    if len(line) > LINE_OBJECT_BYTES // 192 and object_bytes(line) > LINE_OBJECT_BYTES:
        what, expected = "a line of too many values", f"at most {LINE_OBJECT_BYTES >> 20} MiB as objects a line"
        raise TraceError(what, where=where, expected=expected)
    return orjson.loads(line)


def object_bytes(line: bytes) -> int:
    """About what a JSON text takes as Python objects: its own bytes, 32 a value, 64 a list, 192 an object."""
    return len(line) + 32 * line.count(b",") + 64 * line.count(b"[") + 192 * line.count(b"{")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    return repr(value)[:40] if isinstance(value, (int, float, str)) else _kind(value)


def whole(value: object, key: str, where: str, low: int = 0, high: int = MAX_TOKENS) -> int:
    """A whole number from low to high."""
    if type(value) is int and low <= value <= high:
        return value
    raise TraceError(f"{key} is {_shown(value)}", where=where, expected=f"a whole number from {low} to {high}")


def tokens(fields: dict[str, Any], key: str, where: str, low: int = 0) -> int:
    """A token count that must be there."""
    if key not in fields:
        raise TraceError(f"{key} is missing", where=where, expected=f"a whole number of tokens from {low}")
    return whole(fields[key], key, where, low)


def number(value: object, key: str, where: str, low: float = 0.0, high: float = MAX_SECONDS) -> float:
    """A finite number from low to high."""
    if type(value) in (int, float) and low <= value <= high and math.isfinite(value):  # type: ignore[operator,arg-type]
        return float(value)  # type: ignore[arg-type]
    raise TraceError(f"{key} is {_shown(value)}", where=where, expected=f"a number from {low:g} to {high:.0f}")


def duration(value: object, key: str, where: str) -> int:
    """Seconds as picoseconds, quantised to whole microseconds."""
    return ps_from_s(number(value, key, where))


def optional_seconds(fields: dict[str, Any], key: str, where: str, low: float = 0.0) -> float | None:
    """Seconds, or None where the source does not say. Sessions last up to months, so the limit is wide."""
    value = fields.get(key)
    return None if value is None else number(value, key, where, low, 1e8)


def text(value: object, key: str, where: str) -> str:
    """A name: printable, not empty, not endless."""
    if type(value) is str and 0 < len(value) <= NAME_CHARACTERS and value.isprintable():
        return value
    expected = f"1 to {NAME_CHARACTERS} printable characters"
    raise TraceError(f"{key} is {_shown(value)}", where=where, expected=expected)


def printable(value: object, most: int = 200) -> str:
    """A text that can be shown and written anywhere: `most` characters of it, what is not printable as ?."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:most])


def sequence(value: object, key: str, where: str) -> list[Any]:
    if type(value) is list:
        return value
    raise TraceError(f"{key} is {_shown(value)}", where=where, expected="a list")


def mapping(value: object, key: str, where: str) -> dict[str, Any]:
    if type(value) is dict:
        return value
    raise TraceError(f"{key} is {_shown(value)}", where=where, expected="an object")
