"""Folders of results made by hand, in the formats of `sweep` and `oracle`, and a reader of pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sagasim.config import merge
from sagasim.oracle.output import content
from sagasim.oracle.study import Row, Study
from sagasim.sweeping.store import Entry, Folder
from sagasim.sweeping.table import results_table, write_table

__all__ = ["Page", "Point", "make_study", "make_sweep", "summary_of"]

Point = tuple[Mapping[str, Any], str | None]  # keys said of it, label
Times = Callable[[Mapping[str, Any], int], float]
_VOID = {"meta", "wbr"}


def summary_of(tct_s: float, **others: Any) -> dict[str, Any]:
    """A summary with this mean completion time, all else following from it."""
    spread = {"mean": tct_s, "p50": 0.9 * tct_s, "p95": 2.0 * tct_s, "p99": 2.5 * tct_s}
    wait = {key: value / 100 for key, value in spread.items()}
    return {
        "tasks": 20,
        "tct_s": spread,
        "ttft_s": wait,
        "tpot_s": wait,
        "queueing_s": wait,
        "tasks_per_min": 600.0 / tct_s,
        "prefix_hit_rate": 1 - tct_s / 1000,
        "regenerated_share": tct_s / 2000,
        "gpu_busy_share": 0.5,
        "kv_useful_share": 0.5,
        "unfinished_tasks": 0,
        "preemptions": 0,
        "notes": {"step times": "derived: host"},
        **others,
    }


def make_sweep(folder: Path, points: Sequence[Point], seeds: Sequence[int], times: Times, **others: Any) -> Path:
    """A folder as `sagasim sweep` writes it; times: the mean completion time of a point under a seed."""
    folder.mkdir()
    store, found = Folder(folder), []
    for number, (keys, label) in enumerate(points):
        for seed in seeds:
            given = {"workload": "tool-calling", "gpus": 8, **keys, "seed": seed}
            entry = Entry(f"{number:04d}{seed:04d}", given, label)
            config = {key: value for key, value in asdict(merge(given)).items() if value is not None}
            body = {"config": config, "summary": summary_of(times(keys, seed), **others)}
            store.store(entry.hash, body)
            found.append((entry, body))
    store.write_entries([entry for entry, _ in found])
    store.write(folder / "results.parquet", write_table(results_table(found)))
    return folder


def make_study(folder: Path, policies: Sequence[str] = ("lru", "wa-lru")) -> Path:
    """A folder as `sagasim oracle` writes it: the optimum regenerates 10 blocks for memory 1, each policy 10 more."""
    folder.mkdir()
    rows = []
    for place, policy in enumerate(["belady", *policies]):
        for memory, factor in ((0.5, 3), (1.0, 1), (2.0, 0)):
            again, best = 10 * factor * (place + 1), 10 * factor
            rows.append(Row(policy, memory, round(100 * memory), 1000, 900 - again, again, 0, best))
    rows.append(Row("unlimited", None, None, 1000, 900, 0, 0, None))
    study = Study(rows, 50, 2, 100, 1000, 100, "run")
    (folder / "oracle.json").write_text(json.dumps(content(study)))
    return folder


class Page(HTMLParser):
    """A page taken apart. Fails where elements are not nested as they should be.

    tags: every element with its attributes; texts: the text of each element by tag, those inside included.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self.feed(page.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        opened, text = self._open.pop()
        assert opened == tag
        self.texts.setdefault(tag, []).append("".join(text))

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)

    def attributes(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)

    @property
    def titles(self) -> list[str]:
        """Titles of sections."""
        return self.texts.get("h2", [])
