"""A recorded run of a real vLLM server: requests with their times, engine options, and what the authors simulated.

The layout is that of LLMServingSim's benchmarks: config.json, vllm_meta.json, vllm_requests.jsonl[.gz],
vllm_timeseries.csv and validation_summary.txt, of which only the requests must be there.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagasim.errors import TraceError

__all__ = ["RecordedRequest", "RecordedRun", "read_run_folder"]

TIMES = ("queued_ts", "first_token_ts", "last_token_ts")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request: tokens, and seconds on the engine's clock since the first arrival."""

    input_tokens: int
    output_tokens: int
    arrival_s: float
    queued_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """requests: by arrival; meta, config: as recorded, empty where absent; series: rows of the time series."""

    folder: Path
    requests: list[RecordedRequest]
    meta: dict[str, Any]
    config: dict[str, Any]
    series: list[dict[str, float]]
    theirs: dict[str, float]  # metric of the authors' summary -> relative error of their simulator

    def option(self, name: str) -> Any:
        """An engine option as given or as vLLM resolved it; None where neither is recorded."""
        resolved = self.meta.get("resolved_config") or {}
        places = [self.meta.get("engine_kwargs"), self.meta.get("kv_cache"), resolved.get("scheduler_config")]
        places += [resolved.get("cache_config"), resolved.get("parallel_config")]
        for place in places:
            if isinstance(place, dict) and place.get(name) is not None:
                return place[name]
        return None

    @property
    def model(self) -> str:
        """The model as the run names it; empty where it does not."""
        return str(self.instance.get("model_name") or self.option("model") or self.meta.get("model") or "")

    @property
    def hardware(self) -> str:
        """The GPU as the run names it; empty where it does not."""
        told = self.meta.get("hardware")
        device = told.get("device_name") if isinstance(told, dict) else told
        return str(self.instance.get("hardware") or device or "")

    @property
    def instance(self) -> dict[str, Any]:
        """The first serving instance of config.json: model, hardware, memory and links."""
        for node in self.config.get("nodes") or []:
            for instance in node.get("instances") or []:
                if isinstance(instance, dict):
                    return instance
        return {}


def read_run_folder(folder: Path) -> RecordedRun:
    """Read a run. Raises TraceError naming the file and what is wrong with it."""
    path = _first(folder, "vllm_requests.jsonl", "vllm_requests.jsonl.gz", "requests.jsonl", "requests.jsonl.gz")
    if path is None:
        raise TraceError("no recorded requests", where=str(folder), expected="a file vllm_requests.jsonl or .jsonl.gz")
    meta, config = (_json(folder, name) for name in ("vllm_meta.json", "config.json"))
    return RecordedRun(folder, _requests(path), meta, config, _series(folder), _summary(folder))


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read ({error})", where=str(path)) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(_text(path))
    except ValueError as error:
        raise TraceError("not a JSON document", where=str(path), expected="an object") from error
    if not isinstance(loaded, dict):
        raise TraceError("not an object", where=str(path), expected="a JSON object")
    return loaded


def _requests(path: Path) -> list[RecordedRequest]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(
                {key: float(row[key]) for key in TIMES} | {key: int(row[key]) for key in ("input_toks", "output_toks")}
            )
        except (ValueError, TypeError, KeyError) as error:
            expected = f"input_toks, output_toks, {', '.join(TIMES)}"
            raise TraceError(
                f"not a finished request ({error})", where=f"{path}, line {number}", expected=expected
            ) from None
        rows[-1]["scheduled_ts"] = float(row.get("scheduled_ts") or rows[-1]["queued_ts"])
        rows[-1]["arrival_time"] = float(row.get("arrival_time") or rows[-1]["queued_ts"])
        if rows[-1]["input_toks"] < 1 or rows[-1]["output_toks"] < 1:
            raise TraceError("an empty prompt or output", where=f"{path}, line {number}", expected="a token of each")
    if not rows:
        raise TraceError("no requests", where=str(path), expected="one JSON object a line")
    # Arrivals are on the client's clock, all else on the engine's: the least difference is taken as no delay at all.
    behind = min(row["queued_ts"] - row["arrival_time"] for row in rows)
    start = min(row["arrival_time"] for row in rows) + behind
    requests = [
        RecordedRequest(
            row["input_toks"],
            row["output_toks"],
            row["arrival_time"] + behind - start,
            *(row[key] - start for key in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")),
        )
        for row in rows
    ]
    return sorted(requests, key=lambda request: request.arrival_s)


def _series(folder: Path) -> list[dict[str, float]]:
    path = _first(folder, "vllm_timeseries.csv", "vllm_timeseries.csv.gz", "timeseries.csv")
    if path is None:
        return []
    try:
        return [_numbers(row) for row in csv.DictReader(_text(path).splitlines())]
    except csv.Error as error:
        raise TraceError(f"not a time series ({error})", where=str(path), expected="columns of numbers") from error


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The cells that hold numbers."""
    found = {}
    for key, value in row.items():
        with contextlib.suppress(ValueError, TypeError):
            found[key] = float(value)
    return found


def _summary(folder: Path) -> dict[str, float]:
    """Lines such as `TTFT Mean   65456.6   65820.2   +0.6%`."""
    path = _first(folder, "validation_summary.txt", "summary.txt")
    if path is None:
        return {}
    line = re.compile(r"^\s*([A-Za-z][\w ]*?\w)\s+-?[\d.]+\s+-?[\d.]+\s+([-+]?[\d.]+)%\s*$", re.MULTILINE)
    return {name: float(percent) / 100.0 for name, percent in line.findall(_text(path))}
