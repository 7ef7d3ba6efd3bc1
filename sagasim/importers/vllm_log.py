"""The log of a vLLM server that was started with request logging: who asked for what, and what is known of the answer.

Lines that are read, whatever stands before them (process names, the stamps of containers); all others are passed over:

    INFO 11-21 14:04:13 [logger.py:40] Received request <id>: prompt: '...', params: SamplingParams(..., max_tokens=64,
        ...), prompt_token_ids: [1, 2], ...            (vLLM 0.2 to 0.11; `sampling_params` or `sampling params` before)
    INFO ... Received request <id>: params: SamplingParams(...), lora_request: None.               (since vLLM 0.12)
    DEBUG ... Request <id> details: prompt: '...', prompt_token_ids: [1, 2], prompt_embeds shape: None.
    INFO ... Generated response <id>: output: '...', output_token_ids: [5, 6], finish_reason: stop (log of outputs)
    INFO ... Avg prompt throughput: 1.1 tokens/s, Avg generation throughput: 6.1 tokens/s, ...

Texts are dropped while reading: of a prompt remain its length and one hash for each block of BLOCK_TOKENS tokens.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path

from sagasim.core import MAX_TOKENS
from sagasim.errors import TraceError
from sagasim.importers.agentic_mooncake import check_room
from sagasim.importers.lines import NAME_CHARACTERS, raw_lines

__all__ = ["BLOCK_TOKENS", "CHARACTERS_PER_TOKEN", "Request", "ServerLog", "looks_like_vllm_log", "read_log"]

BLOCK_TOKENS = 16  # vLLM's own
CHARACTERS_PER_TOKEN = 4  # where only the text of a prompt is known; an assumption
THROUGHPUT_S = 10.0  # vLLM logs its throughput every 10 s
IDLE_LINES = 1_000_000  # without a request: no server's log goes on so long
_HEAD_BYTES = 400  # of a line, in which what it says must begin

_LITERAL = r"""(?:None|'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")"""
_IDS = r"(?:None|\[[\d, ]*+\])"
_SAYS = re.compile(
    rb"(?:(?:INFO|DEBUG)\s+(?:((?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,]\d+)?\s+)?\[?[\w./-]+:\d+\]\s+)"
    rb"(Received request |Request |Generated response |(?:Engine \d+: )?Avg prompt throughput: )"
)
_COLOURS = re.compile(rb"\x1b\[[\d;]*m")
_NAME = re.compile(rf"([^\s:]{{1,{NAME_CHARACTERS - 10}}})( \(streaming \w+\)| details)?: ")
_PROMPT = re.compile(rf"prompt: ({_LITERAL}), ?", re.DOTALL)
_PROMPT_IDS = re.compile(rf"prompt[ _]token[ _]ids: ({_IDS})")
_OUTPUT = re.compile(rf"output: ({_LITERAL}), (?:output_token_ids: ({_IDS}), )?finish_reason: (\w+)", re.DOTALL)
_BLOCK_IDS = re.compile(rf"(?:\d++,?){{1,{BLOCK_TOKENS}}}")
_STREAMED = re.compile(r"<streaming_complete: (\d{1,9}) tokens>")
_THROUGHPUT = re.compile(rb"Avg prompt throughput: (\d{1,12}\.?\d{0,6}) tokens/s, Avg generation throughput: "
                         rb"(\d{1,12}\.?\d{0,6}) tokens/s")  # fmt: skip
_LIMITS = {key: re.compile(rf"\b{key}=(\d{{1,12}})\b") for key in ("max_tokens", "min_tokens")}


@dataclass(slots=True)
class Request:
    """One request. prompt, output: tokens, None where the log does not say; ids: hashes of the blocks of its prompt."""

    name: str
    where: str
    second: int | None
    prompt: int | None = None
    guessed: bool = False  # the prompt's tokens are counted by its characters
    ids: list[int] = field(default_factory=list)
    output: int | None = None
    least: int = 1
    most: int | None = None


@dataclass(slots=True)
class ServerLog:
    """The requests of a log by name, and what its throughput lines add up to in tokens."""

    requests: dict[str, Request] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)  # name -> how often it came, where more than once
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0


def looks_like_vllm_log(lines: Iterable[bytes]) -> bool:
    """Whether one of the lines tells of a request."""
    heads = (_SAYS.search(_COLOURS.sub(b"", line[:_HEAD_BYTES])) for line in lines)
    return any(says is not None and says[2] == b"Received request " for says in heads)


def read_log(path: Path) -> ServerLog:
    """All that a log says about its requests, in the order in which they came."""
    log = ServerLog()
    details: dict[str, Request] = {}
    clock = _Clock()
    idle = ids = 0
    for count, line in raw_lines(path):
        if b"\x1b" in line[:_HEAD_BYTES]:
            line = _COLOURS.sub(b"", line)
        says = _SAYS.search(line[:_HEAD_BYTES])
        idle = 0 if says else idle + 1
        if idle > IDLE_LINES:
            what = f"{IDLE_LINES:,} lines without a request"
            raise TraceError(what, where=f"{path}:{count}", expected="the log of a vLLM server")
        if says is None:
            continue
        where = f"{path}:{count}"
        if says[2].endswith(b"throughput: "):
            if rates := _THROUGHPUT.search(line):
                log.prompt_tokens += float(rates[1]) * THROUGHPUT_S
                log.output_tokens += float(rates[2]) * THROUGHPUT_S
            continue
        request = _request(line[says.end() :].decode(errors="replace"), says, clock, where, log, details)
        if request is not None:
            ids += len(request.ids)
            check_room(len(log.requests) + len(details), ids, where)
    return log


def _request(
    text: str, says: re.Match[bytes], clock: _Clock, where: str, log: ServerLog, details: dict[str, Request]
) -> Request | None:
    """Take in a line about a request; returns what it adds, if anything."""
    named = _NAME.match(text)
    if named is None:
        return None
    name, rest = named[1], text[named.end() :]
    if says[2] == b"Generated response ":
        request = log.requests.get(name) or log.requests.get(f"{name}-0")
        if request is not None:
            _answered(request, rest)
        return None
    if says[2] == b"Request ":
        if named[2] == " details":
            details[name] = _read_prompt(Request(name, where, None), rest)
            return details[name]
        return None
    known = details.pop(name, None)
    request = _read_prompt(Request(name, where, clock.seconds(says[1], where)), rest)
    if known is not None:
        request.prompt, request.guessed, request.ids = known.prompt, known.guessed, known.ids
    if not _read_params(request, rest):
        return None
    while request.name in log.requests:
        log.again[name] = again = log.again.get(name, 1) + 1
        request.name = f"{name}#{again}"
    log.requests[request.name] = request
    return request


def _read_prompt(request: Request, rest: str) -> Request:
    """Tokens and hashes of a prompt: by its token ids, else by its text."""
    prompt = _PROMPT.match(rest)
    ids = _PROMPT_IDS.search(rest, prompt.end() if prompt else 0)
    if ids and ids[1] not in ("None", "[]"):
        numbers = ids[1][1:-1].replace(" ", "")
        request.prompt = numbers.count(",") + 1
        request.ids = [_hash(block[0].rstrip(",")) for block in _BLOCK_IDS.finditer(numbers)]
    elif prompt and prompt[1] != "None":
        try:
            text = literal_eval(prompt[1])
        except (ValueError, SyntaxError, MemoryError):
            raise TraceError("a prompt that cannot be read", where=request.where, expected="a quoted text") from None
        size = BLOCK_TOKENS * CHARACTERS_PER_TOKEN
        request.prompt, request.guessed = max(-(-len(text) // CHARACTERS_PER_TOKEN), 1), True
        request.ids = [_hash(text[at : at + size]) for at in range(0, len(text), size)]
    if request.prompt is not None and request.prompt > MAX_TOKENS:
        raise TraceError("a prompt that is too long", where=request.where, expected=f"at most {MAX_TOKENS:,} tokens")
    return request


def _hash(block: str) -> int:
    return int.from_bytes(blake2b(block.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _read_params(request: Request, rest: str) -> bool:
    """How many tokens were asked for; False for what generates no tokens, as embeddings."""
    prompt = _PROMPT.match(rest)
    params = rest[prompt.end() if prompt else 0 :]
    if "PoolingParams(" in params:
        return False
    most, least = (pattern.search(params) for pattern in _LIMITS.values())
    request.most = max(min(int(most[1]), MAX_TOKENS), 1) if most else None
    request.least = max(int(least[1]), 1) if least else 1
    if request.most is not None:
        request.least = min(request.least, request.most)
        if "ignore_eos=True" in params:
            request.output = request.most
    return True


def _answered(request: Request, rest: str) -> None:
    """Output tokens by what was logged of the answer; a part of a stream adds to what came before."""
    answer = _OUTPUT.match(rest)
    if answer is None:
        return
    text, ids, reason = answer.groups()
    if ids and ids not in ("None", "[]"):
        request.output = (request.output or 0) + ids.count(",") + 1
    elif streamed := _STREAMED.search(text[:60]):
        request.output = int(streamed[1])
    elif reason == "length" and request.most is not None:
        request.output = request.most


class _Clock:
    """Seconds since the first stamp. A stamp has no year: a month that goes back by half a year is one of the next."""

    def __init__(self) -> None:
        self._first: datetime | None = None
        self._last: datetime | None = None

    def seconds(self, stamp: bytes | None, where: str) -> int | None:
        if stamp is None:
            return None
        text = stamp.decode()
        year = self._last.year if self._last is not None else 2000  # a leap year, for any day to be one
        try:
            now = datetime.fromisoformat(text if len(text) > 14 else f"{year}-{text}")
            if self._last is not None and self._last - now > timedelta(days=180):
                now = now.replace(year=year + 1)
        except ValueError:
            raise TraceError(f"the time {text!r}", where=where, expected="month-day hour:minute:second") from None
        self._last = now if self._last is None else max(now, self._last)
        self._first = now if self._first is None else self._first
        return max(int((now - self._first).total_seconds()), 0)
