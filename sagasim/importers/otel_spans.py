"""OpenTelemetry GenAI spans, read from OTLP JSON and reduced: lengths, times, and hashes of messages; no text is kept.

A file holds one ExportTraceServiceRequest per line, as file exporters write it, or one such document; what Tempo hands
out (`batches`, or `trace` around it) is read too. Attributes follow the semantic conventions `gen_ai.*`; older names
(prompt_tokens, completion_tokens, gen_ai.prompt.<n>.content) are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from sagasim.core import MAX_TOKENS
from sagasim.errors import TraceError
from sagasim.importers.lines import (
    MAX_ROWS,
    mapping,
    parse,
    parse_text,
    printable,
    read_document,
    read_lines,
    sequence,
    whole,
)

__all__ = ["Message", "Span", "looks_like_otlp", "read_spans"]

LLM = frozenset({"chat", "text_completion", "generate_content"})
AGENT = frozenset({"invoke_agent", "invoke_workflow"})
TOOL = "execute_tool"
PROMPT_KEYS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
OUTPUT_KEYS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens")
CACHED_KEYS = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
WRITTEN_KEYS = ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens")
HIDDEN_KEYS = ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens")
MESSAGE_KEYS = ("gen_ai.input.messages", "gen_ai.prompt")
FIRST_KEYS = ("gen_ai.tool.definitions", "gen_ai.system_instructions")
SYSTEM_ROLES = frozenset({"system", "developer"})
MAX_NS = 2**63
MAX_MESSAGES = 5_000_000  # of a whole file, a gigabyte or two
_INDEXED = re.compile(r"gen_ai\.prompt\.(\d{1,6})\.")
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
_NOISE = ("finish_reason",)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt: hash of its content, its characters, who speaks."""

    key: int
    characters: int
    role: str


@dataclass(slots=True)
class Span:
    """A span of interest. kind: llm, agent, tool, or empty for any other, which only links its children."""

    trace: str
    span: str
    parent: str
    kind: str
    name: str  # of the agent or tool
    conversation: str
    start_us: int
    end_us: int
    prompt: int = 0
    output: int = 0
    cached: int = 0
    hidden: int = 0
    messages: list[Message] = field(default_factory=list)
    where: str = ""


def looks_like_otlp(fields: dict[str, Any]) -> bool:
    inner = fields.get("trace")
    keys = fields.keys() | (inner.keys() if isinstance(inner, dict) else set())
    return not keys.isdisjoint({"resourceSpans", "batches"})


def read_spans(path: Path, *, document: bool) -> list[Span]:
    """The spans of a file. document: the file is one JSON document, not one per line."""
    spans: list[Span] = []
    messages = 0
    requests = [(str(path), read_document(path))] if document else _requests(path)
    for where, fields in requests:
        try:
            for raw, place in _raw_spans(fields, where):
                spans.append(_span(raw, place))
                messages += len(spans[-1].messages)
                if len(spans) > MAX_ROWS:
                    raise TraceError("too many spans", where=where, expected=f"at most {MAX_ROWS:,} in a file")
                if messages > MAX_MESSAGES:
                    raise TraceError("too many messages", where=where, expected=f"at most {MAX_MESSAGES:,} in a file")
        except (RecursionError, orjson.JSONEncodeError):
            raise TraceError("attributes nested too deeply", where=where, expected="plain attributes") from None
    return spans


def _requests(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for count, line in read_lines(path):
        where = f"{path}:{count}"
        yield where, parse(line, where)


def _raw_spans(fields: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    inner = fields.get("trace")
    fields = inner if isinstance(inner, dict) else fields
    resources = fields.get("resourceSpans", fields.get("batches"))
    for resource in sequence([] if resources is None else resources, "resourceSpans", where):
        entry = mapping(resource, "an entry of resourceSpans", where)
        scopes = entry.get("scopeSpans", entry.get("instrumentationLibrarySpans"))
        for scope in sequence([] if scopes is None else scopes, "scopeSpans", where):
            listed = mapping(scope, "an entry of scopeSpans", where).get("spans")
            for number, raw in enumerate(sequence([] if listed is None else listed, "spans", where), start=1):
                yield mapping(raw, "a span", where), f"{where}: span {number}"


def _span(raw: dict[str, Any], where: str) -> Span:
    trace, span = _identity(raw, "traceId", where), _identity(raw, "spanId", where)
    where = f"{where} ({span})"
    attributes = _attributes(raw.get("attributes"), where)
    kind, name = _kind(attributes)
    start_us, end_us = (_microseconds(raw.get(key), key, where) for key in ("startTimeUnixNano", "endTimeUnixNano"))
    conversation = attributes.get("gen_ai.conversation.id")
    made = Span(
        trace,
        span,
        raw["parentSpanId"] if isinstance(raw.get("parentSpanId"), str) else "",
        kind,
        printable(name),
        printable(conversation) if isinstance(conversation, str) else "",
        start_us,
        max(end_us, start_us),
        where=where,
    )
    if kind == "llm":
        made.prompt, made.output, made.cached, written, made.hidden = (
            _count(attributes, keys, where)
            for keys in (PROMPT_KEYS, OUTPUT_KEYS, CACHED_KEYS, WRITTEN_KEYS, HIDDEN_KEYS)
        )
        if made.cached + written > made.prompt:  # some providers count what they cached apart
            made.prompt = min(made.prompt + made.cached + written, MAX_TOKENS)
        made.messages = list(_messages(attributes, raw.get("events"), where))
    return made


def _kind(attributes: dict[str, Any]) -> tuple[str, object]:
    """(kind of a span, name of its agent or tool)."""
    operation = attributes.get("gen_ai.operation.name")
    if operation in AGENT:
        return "agent", attributes.get("gen_ai.agent.name") or attributes.get("gen_ai.agent.id") or "agent"
    if operation == TOOL:
        return "tool", attributes.get("gen_ai.tool.name") or "tool"
    counted = any(key in attributes for key in PROMPT_KEYS)
    if operation in LLM or (operation is None and counted):
        return "llm", attributes.get("gen_ai.agent.name") or ""
    return "", ""


def _identity(raw: dict[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable():
        return value
    raise TraceError(f"{key} is missing or no id", where=where, expected="a hexadecimal id")


def _microseconds(value: object, key: str, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 19:
        value = int(value)
    return whole(value, key, where, 1, MAX_NS) // 1000


def _count(attributes: dict[str, Any], keys: Iterable[str], where: str) -> int:
    """The first of the counts that is there, 0 without any."""
    for key in keys:
        value = attributes.get(key)
        if value is not None:
            if isinstance(value, float) and value.is_integer() and abs(value) < MAX_NS:
                value = int(value)
            return whole(value, key, where)
    return 0


# ---- attributes


def _attributes(raw: object, where: str) -> dict[str, Any]:
    """Attributes by name; of those that nobody here reads, nothing is kept."""
    read: dict[str, Any] = {}
    for item in sequence([] if raw is None else raw, "attributes", where):
        entry = mapping(item, "an attribute", where)
        key = entry.get("key")
        if isinstance(key, str) and key.startswith(("gen_ai.", "llm.usage.")):
            read[key] = _value(entry.get("value"), where)
    return read


def _value(raw: object, where: str) -> Any:
    """A plain value of an AnyValue of OTLP."""
    if not isinstance(raw, dict) or not raw:
        return None
    kind, value = next(iter(raw.items()))
    if kind == "intValue" and isinstance(value, str):
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else value
    if kind == "arrayValue" and isinstance(value, dict):
        return [_value(item, where) for item in sequence(value.get("values") or [], "values", where)]
    if kind == "kvlistValue" and isinstance(value, dict):
        items = sequence(value.get("values") or [], "values", where)
        pairs = [mapping(item, "a pair", where) for item in items]
        return {str(pair.get("key")): _value(pair.get("value"), where) for pair in pairs}
    return value


# ---- messages


def _messages(attributes: dict[str, Any], events: object, where: str) -> Iterator[Message]:
    """The messages of a prompt in order: tool definitions and instructions first, then the conversation."""
    sources = [attributes]
    spoken: list[tuple[str, Any]] = []
    for raw in sequence([] if events is None else events, "events", where):
        event = mapping(raw, "an event", where)
        inside = _attributes(event.get("attributes"), where)
        named = _EVENT.fullmatch(str(event.get("name"))[:100])
        if named is not None:
            spoken.append((named[1], inside))
        else:
            sources.append(inside)
    merged = {key: value for source in reversed(sources) for key, value in source.items()}
    for key in FIRST_KEYS:
        if merged.get(key):
            yield _message("system", _decoded(merged[key], where))
    listed = next((_decoded(merged[key], where) for key in MESSAGE_KEYS if merged.get(key)), None)
    if isinstance(listed, list):
        for item in listed:
            yield _message(item.get("role") if isinstance(item, dict) else "", item)
    elif listed is not None:
        yield _message("user", listed)
    elif spoken:
        for role, content in spoken:
            yield _message(role, content)
    else:
        yield from _indexed(attributes)


def _indexed(attributes: dict[str, Any]) -> Iterator[Message]:
    """Messages as attributes of their own: gen_ai.prompt.0.role, gen_ai.prompt.0.content, ..."""
    parts: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        if matched := _INDEXED.match(key):
            parts.setdefault(int(matched[1]), {})[key[matched.end() :]] = value
    for number in sorted(parts):
        yield _message(parts[number].get("role"), parts[number])


def _decoded(value: Any, where: str) -> Any:
    """The value of an attribute that may be JSON in a string; any other string is itself."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return parse_text(value.encode(errors="replace"), where)
    except orjson.JSONDecodeError:
        return value


def _message(role: object, content: Any) -> Message:
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _NOISE}
    packed = orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    key = int.from_bytes(blake2b(packed, digest_size=8).digest(), "big")
    return Message(key, len(packed), "system" if role in SYSTEM_ROLES else str(role)[:20])
