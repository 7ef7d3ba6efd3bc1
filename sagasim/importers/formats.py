"""Which format a file has, told by its content and never by its name, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sagasim.core import Task
from sagasim.errors import ConfigError, TraceError, nearest
from sagasim.importers.lines import parse, printable, raw_lines, read_document

__all__ = ["FORMATS", "Source", "detect", "open_source"]

Tasks = Callable[[int], Iterator[Task]]

# format -> its options
FORMATS: dict[str, tuple[str, ...]] = {
    "native": (),
    "sessions": ("share",),
    "agentic_mooncake": ("block_tokens", "turns"),
    "azure": (),
    "otel": ("share",),
    "vllm_log": (),
    "vllm_requests": (),
    "vllm_bench": (),
}
SHARES = ("prefix", "session")
_KEYS = (  # format, what an object of it holds
    ("native", {"sagasim_trace"}),
    ("sessions", {"sid", "steps"}),
    ("agentic_mooncake", {"input_length", "output_length"}),
    ("vllm_requests", {"input_toks", "output_toks"}),
    ("vllm_bench", {"input_lens", "output_lens"}),
)
_EXPECTED = (
    "a native trace, sessions (sid, steps), requests (input_length, output_length), Azure's CSV, OpenTelemetry spans "
    "(resourceSpans), or a vLLM server's log, requests (input_toks, output_toks) or benchmark (input_lens, output_lens)"
)
_LOOK_LINES, _LOOK_BYTES = 20_000, 16 * 2**20  # how far a server's log is searched for a first request


@dataclass(frozen=True)
class Source:
    """A file that is understood. name: what its header calls it, if anything; filled: what is drawn or assumed."""

    format: str
    name: str | None
    filled: dict[str, str]
    read: Tasks


@dataclass(frozen=True)
class _Found:
    """first: the first object, where the file holds JSON; document: it is spread over several lines."""

    format: str
    line: bytes
    first: dict[str, Any]
    document: bool = False


def detect(path: Path) -> str:
    """The format of a file. Raises TraceError where it is none of those in FORMATS."""
    return _find(path).format


def open_source(path: Path, options: Mapping[str, Any]) -> Source:
    """Open a file; importers are loaded only as they are needed.

    Raises TraceError for a file that is not understood, ConfigError for an option that its format does not have.
    """
    found = _find(path)
    check_options(found.format, options)
    name: str | None = None
    filled: dict[str, str] = {}
    read: Tasks
    if found.format == "native":
        from sagasim.importers.native import read_header, read_native

        header = read_header(found.line, f"{path}:1")
        name, filled, read = header.get("name"), header["filled"], _unseeded(partial(read_native, path))
    elif found.format == "sessions":
        from sagasim.importers.sessions import filled_texts, read_sessions

        share = options.get("share", "prefix")
        filled, read = filled_texts(found.first), partial(_sessions, partial(read_sessions, path), share)
    elif found.format == "agentic_mooncake":
        filled, read = _mooncake(path, options)
    elif found.format == "azure":
        from sagasim.importers.azure import read_azure

        read = _unseeded(partial(read_azure, path))
    elif found.format == "otel":
        from sagasim.importers.otel import open_otel

        filled, read = open_otel(path, options.get("share", "prefix"), document=found.document)
    elif found.format == "vllm_log":
        from sagasim.importers.vllm_tasks import open_vllm_log

        filled, read = open_vllm_log(path)
    else:
        from sagasim.importers.vllm_json import read_vllm_bench, read_vllm_requests

        read = _unseeded(partial(read_vllm_bench if found.format == "vllm_bench" else read_vllm_requests, path))
    return Source(found.format, name, filled, read)


def _mooncake(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, str], Tasks]:
    from sagasim.importers.agentic_mooncake import BLOCK_TOKENS, read_agentic_mooncake

    read = partial(read_agentic_mooncake, path, options.get("block_tokens", BLOCK_TOKENS))
    if options.get("turns") is None:
        return {}, _unseeded(read)
    from sagasim.importers.turns import TURNS_TEXT, link_turns

    return {"user_s": TURNS_TEXT}, _unseeded(partial(read, partial(link_turns, path=Path(options["turns"]))))


def _unseeded(read: Callable[[], Iterator[Task]]) -> Tasks:
    """Formats that leave nothing to draw."""
    return lambda _seed: read()


def _sessions(read: Callable[[int, str], Iterator[Task]], share: str, seed: int) -> Iterator[Task]:
    return read(seed, share)


def check_options(trace_format: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that a format does not have, or a value that makes no sense."""
    valid = FORMATS[trace_format]
    for key, value in options.items():
        if key not in valid:
            expected = nearest(key, valid) if valid else "no options"
            raise ConfigError(f"unknown option {key!r} of a trace in format {trace_format}", expected=expected)
        if key == "share" and value not in SHARES:
            raise ConfigError(f"share is {value!r}", expected=nearest(str(value), SHARES))
        if key == "block_tokens" and (type(value) is not int or not 1 <= value <= 10**6):
            raise ConfigError(f"block_tokens is {value!r:.40}", expected="a whole number from 1")
        if key == "turns" and not isinstance(value, str | Path):
            raise ConfigError(f"turns is {value!r:.40}", expected="a file")


# ---- telling formats apart


def _find(path: Path) -> _Found:
    lines = raw_lines(path)
    count, line = next(((count, line) for count, line in lines if not line.isspace()), (0, b""))
    if not count:
        raise TraceError("an empty file", where=str(path), expected="at least one line of JSON")
    where = f"{path}:{count}"
    text = line.lstrip()
    if text.startswith(b"{"):
        return _json(path, line, where, several=next(lines, None) is not None)
    header = {cell.strip().lower() for cell in text[:1000].split(b",")}
    if {b"timestamp", b"contexttokens", b"generatedtokens"} <= header:
        return _Found("azure", line, {})
    if _is_log(path):
        return _Found("vllm_log", line, {})
    if b"parent_row" in header:
        raise TraceError("turns without their requests", where=where, expected="the requests, and this file as turns")
    try:
        shown = line.decode().strip()[:60]
    except UnicodeDecodeError:
        shown = "\0"
    if not shown.replace("\t", " ").isprintable():
        raise TraceError("not text", where=where, expected=_EXPECTED)
    raise TraceError(f"unknown format (begins with {shown!r})", where=where, expected=_EXPECTED)


def _json(path: Path, line: bytes, where: str, *, several: bool) -> _Found:
    """The format of a file that begins as JSON: an object a line, or one over several lines."""
    document = False
    try:
        first = parse(line, where)
    except TraceError as error:
        if not several:
            raise
        try:
            first, document = read_document(path), True
        except TraceError:
            raise error from None
    for trace_format, keys in _KEYS:
        if keys <= first.keys() and (not document or trace_format == "vllm_bench"):
            return _Found(trace_format, line, first, document)
    from sagasim.importers.otel_spans import looks_like_otlp

    if looks_like_otlp(first):
        return _Found("otel", line, first, document)
    shown = ", ".join(sorted(first)[:5]) or "none"
    raise TraceError(f"unknown format (keys: {printable(shown, 80)})", where=where, expected=_EXPECTED)


def _is_log(path: Path) -> bool:
    from sagasim.importers.vllm_log import looks_like_vllm_log

    def looked() -> Iterator[bytes]:
        size = 0
        for _, line in islice(raw_lines(path), _LOOK_LINES):
            yield line
            size += len(line)
            if size > _LOOK_BYTES:
                return

    return looks_like_vllm_log(looked())
