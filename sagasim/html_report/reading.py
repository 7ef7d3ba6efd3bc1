"""Folders of sweeps and comparisons as Runs, those of the oracle as Studies; checked: anybody may have written them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim import __version__
from sagasim.config import KINDS, Config
from sagasim.errors import ResultsError
from sagasim.html_report.model import MAIN, Runs, Setting
from sagasim.importers.lines import printable
from sagasim.metrics import figure_entry, flat, summary
from sagasim.oracle.study import OPTIMUM, POOLED, Row, Study
from sagasim.report import config_label, work_label
from sagasim.results import read_json, read_run
from sagasim.sweeping.store import Entry, Folder, entries
from sagasim.sweeping.table import KEYS, content_digest, labels, read_results

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "is_comparison",
    "is_oracle",
    "is_run",
    "is_sweep",
    "read_comparison",
    "read_single",
    "read_study",
    "read_sweep",
]

_MOST_LETTERS = 300  # of a text that is shown
_SWEEP = "a table of sagasim sweep"


def is_sweep(folder: Path) -> bool:
    return (folder / "results.parquet").exists() or (folder / "sweep.toml").exists()


def is_comparison(folder: Path) -> bool:
    return (folder / "comparison.json").exists()


def is_oracle(folder: Path) -> bool:
    return (folder / "oracle.json").exists()


def is_run(folder: Path) -> bool:
    return (folder / "summary.json").exists()


# ---- sweeps


def read_sweep(folder: Path) -> Runs:
    """The settings of a sweep, in the order of its table. Raises ResultsError."""
    table = read_results(folder)
    asked = {entry.hash: (place, entry) for place, entry in enumerate(entries(folder))}
    rows = [row for row in _rows(table, folder / "results.parquet") if row["point"] in asked]
    if not rows:
        raise ResultsError("no results", where=str(folder), expected="a sweep with at least one point that ended")
    found = [asked[row["point"]][1] for row in rows]
    axes = [key for key in _varied(found) if key in table.column_names]
    metrics = _metrics(table)
    settings: dict[tuple[Any, ...], Setting] = {}
    measured: dict[tuple[Any, ...], dict[int, Mapping[str, float | None]]] = {}
    twice = 0
    within = _within_labels(found)
    for row, entry in zip(rows, found, strict=True):
        label = None if entry.label is None else printable(entry.label)
        said = [axis for axis in axes if axis in entry.given and (label is None or axis in within[entry.label])]
        values = {axis: _shown(row[axis]) for axis in axes}
        key = (label, *said, *values.values())
        by_seed = measured.setdefault(key, {})
        settings.setdefault(key, Setting(label, values, said, asked[entry.hash][0], by_seed))
        twice += row["seed"] in by_seed
        by_seed.setdefault(row["seed"], {path: _finite(row[path]) for path in metrics})
    title, notes = _provenance(folder, [row["point"] for row in rows], found)
    facts = [
        ("varied", ", ".join(axes) or ("labels" if any(entry.label for entry in found) else "nothing but the seed")),
        *_counts(folder, len(rows), len(asked), twice),
        ("digest of the table", content_digest(table)),
        ("report by", f"sagasim {__version__}"),
    ]
    preset = printable(rows[0].get("preset") or "the default preset")
    return Runs("sweep", title, axes, preset, _named_apart(list(settings.values()), axes), facts, notes)


def _rows(table: pa.Table, path: Path) -> list[dict[str, Any]]:
    """The rows, with the columns that are needed of the types that they must have."""
    import pyarrow as pa

    for name in ("point", "seed", MAIN):
        if name not in table.column_names:
            raise ResultsError(f"lacks column {name!r}", where=str(path), expected=_SWEEP)
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    kinds = {"point": pa.string(), MAIN: pa.float64(), **{key: types[kind] for key, kind in KINDS.items()}}
    for name in (name for name in kinds if name in table.column_names):
        gaps = table[name].null_count if name in ("point", "seed") else 0
        if table[name].type != kinds[name] or gaps:
            what = f"column {name!r} of {table[name].type} with {gaps} gaps"
            raise ResultsError(what, where=str(path), expected=_SWEEP)
    return table.to_pylist()  # type: ignore[no-any-return]


def _metrics(table: pa.Table) -> list[str]:
    """Columns of numbers that are no keys."""
    import pyarrow as pa

    kinds = (pa.int64(), pa.float64())
    return [field.name for field in table.schema if field.type in kinds and field.name not in KINDS]


def _varied(found: Sequence[Entry]) -> list[str]:
    """The keys whose values differ between the points; those of the list of points and of the grid alike."""
    return [key for key in KEYS if key != "seed" and len({repr(entry.given.get(key)) for entry in found}) > 1]


def _within_labels(found: Sequence[Entry]) -> dict[str | None, set[str]]:
    """The keys that vary among the points of one label, which then does not say all."""
    groups: dict[str | None, list[Entry]] = {}
    for entry in found:
        groups.setdefault(entry.label, []).append(entry)
    return {label: set(_varied(group)) for label, group in groups.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return _finite(value)
    return printable(value) if isinstance(value, str) else value


def _finite(value: Any) -> float | None:
    """A number; None for what is none, or is not finite."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _named_apart(settings: list[Setting], axes: Sequence[str]) -> list[Setting]:
    """The settings, those that would have the same name numbered."""
    seen: dict[str, int] = {}
    out = []
    for one in settings:
        name = one.name(axes)
        seen[name] = seen.get(name, 0) + 1
        label = one.label if seen[name] == 1 else f"{one.label or name} ({seen[name]})"
        said = one.said if seen[name] == 1 or one.label else ()
        out.append(Setting(label, one.values, said, one.place, one.by_seed))
    return out


def _counts(folder: Path, done: int, asked: int, twice: int) -> Iterator[tuple[str, str]]:
    missing = asked - done
    yield "points", f"{done:,}" + (f" of {asked:,}; {missing:,} have no result" if missing else "")
    try:
        with open(folder / "failed.csv", encoding="utf-8", newline="") as file:
            failed = max(0, sum(1 for _ in csv.reader(file)) - 1)
        yield "failed", f"{failed:,} points, see failed.csv"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, csv.Error):
        yield "failed", "failed.csv cannot be read"
    if twice:
        yield "twice", f"{twice:,} points have the setting and seed of another, which is the one shown"


def _provenance(folder: Path, points: Sequence[str], found: Sequence[Entry]) -> tuple[str, dict[str, str]]:
    """What the points have served and on what, in one line, and their notes."""
    common: list[str] | None = None  # parts of what is said of the work that every setting has
    notes: dict[str, list[str]] = {}
    store, seen = Folder(folder), set[str]()
    names = labels([(entry.label, entry.given) for entry in found])
    for point, name in zip(points, names, strict=True):
        body = store.result(point) if name not in seen else None
        seen.add(name)
        if body is None:
            continue
        parts = _work(body).split(", ")
        common = parts if common is None else [part for part in common if part in parts]
        for key, text in _texts(body["summary"].get("notes")).items():
            texts = notes.setdefault(key, [])
            if text not in texts:
                texts.append(text)
    title = ", ".join(common or ())
    title = f"Sweep {title}".strip() if not title or title.startswith("on ") else title
    return title, {
        key: texts[0] + (" (this differs between settings)" if len(texts) > 1 else "") for key, texts in notes.items()
    }


def _work(body: Mapping[str, Any]) -> str:
    config = {key: value for key, value in body["config"].items() if key in KINDS}
    try:
        return printable(work_label(Config(**config), body["summary"]["tasks"]), _MOST_LETTERS)
    except (KeyError, TypeError, ValueError):
        return ""


def _texts(notes: Any) -> dict[str, str]:
    if not isinstance(notes, Mapping):
        return {}
    return {printable(key): printable(text, 2 * _MOST_LETTERS) for key, text in notes.items()}


# ---- comparisons


def read_comparison(folder: Path) -> Runs:
    """The systems of a comparison, with all metrics of their runs if these are still there. Raises ResultsError."""
    path = folder / "comparison.json"
    content = read_json(path)
    try:
        names, seeds, values = _compared(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"no comparison: {printable(error)!r}"
        raise ResultsError(what, where=str(path), expected="a file of sagasim compare") from None
    runs = {(name, seed): folder / f"{name}-seed{seed}" for name in names for seed in seeds}
    drawn: list[dict[str, Any]] = []
    if all(run.is_dir() for run in runs.values()):
        for (name, seed), run in runs.items():
            result = read_run(run)
            measured = summary(result)
            values[name][seed] = _numbers(measured)
            drawn.append(figure_entry(name, result, measured))
    settings = [Setting(None, {"preset": name}, ("preset",), at, values[name]) for at, name in enumerate(names)]
    facts = [
        ("systems", ", ".join(names)),
        ("tasks", printable(content["window"], _MOST_LETTERS)),
        *([("length", printable(content["length"], _MOST_LETTERS))] if content.get("length") else []),
        ("trace", "drawn again for each seed") if content.get("resampled") else ("trace", "the same for every seed"),
        ("report by", f"sagasim {__version__}"),
    ]
    title = printable(content["work"], _MOST_LETTERS)
    notes = _texts(content.get("notes"))
    return Runs("comparison", title, ("preset",), names[0], settings, facts, notes, content, drawn)


def read_single(folder: Path) -> Runs:
    """A run as a comparison of one. Raises ResultsError, or ConfigError for its config.toml."""
    result = read_run(folder)
    measured = summary(result)
    name = config_label(result.config)
    setting = Setting(None, {}, (), 0, {result.config.seed: _numbers(measured)})
    facts = [("system", name), ("digest", str(measured["digest"])), ("report by", f"sagasim {__version__}")]
    title = printable(work_label(result.config, measured["tasks"]), _MOST_LETTERS)
    drawn = [figure_entry(name, result, measured)]
    return Runs("run", title, (), name, [setting], facts, _texts(measured["notes"]), entries=drawn)


def _compared(content: Any) -> tuple[list[str], list[int], dict[str, dict[int, dict[str, float | None]]]]:
    """Names of systems, seeds, and metrics by system and seed, of comparison.json."""
    names, seeds = [str(name) for name in content["presets"]], [int(seed) for seed in content["seeds"]]
    if not names or not seeds or len(set(names)) < len(names) or len(set(seeds)) < len(seeds):
        raise ValueError("systems and seeds")
    if any(name != printable(name) for name in names):
        raise ValueError("names of systems")
    for text in ("work", "window"):
        if not isinstance(content[text], str):
            raise TypeError(text)
    values: dict[str, dict[int, dict[str, float | None]]] = {name: {seed: {} for seed in seeds} for name in names}
    for metric in content["metrics"]:
        for name in names:
            for seed, value in zip(seeds, metric["by_preset"][name]["values"], strict=True):
                values[name][seed][str(metric["metric"])] = _finite(value)
    _check_levels(content.get("slo", {}), names)
    for tenant in content.get("tenants", {}).values():
        for name in names:
            dict(tenant.get(name, {}))
    return names, seeds, values


def _check_levels(levels: Any, names: Sequence[str]) -> None:
    """Raise ValueError and its like unless every curve has a point with its interval for each multiplier."""
    for level in levels.values():
        multipliers = [float(one) for one in level["multipliers"]]
        for name in names:
            points = level["by_preset"][name]
            known = all(_finite(p["mean"]) is not None for p in points)
            if len(points) != len(multipliers) or not known or min(multipliers, default=0) <= 0:
                raise ValueError("service levels")
            if not all(p[side] is None or _finite(p[side]) is not None for p in points for side in ("low", "high")):
                raise ValueError("intervals of service levels")


def _numbers(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a summary by the names that the table of a sweep has for them."""
    return {name: _finite(value) for name, value in flat(summary) if value is None or isinstance(value, (int, float))}


# ---- the oracle


def read_study(folder: Path) -> Study:
    """What oracle.json holds. Raises ResultsError."""
    path = folder / "oracle.json"
    content = read_json(path)
    try:
        rows = [_row(row) for row in content["rows"]]
        counts = {key: _count(content[key]) for key in ("calls", "caches", "blocks", "reads", "first")}
        best = {row.memory for row in rows if row.policy == OPTIMUM}
        if not best or content["pins"] not in ("run", "none"):
            raise ValueError("rows and pins")
        if not best >= {row.memory for row in rows if row.policy == POOLED}:
            raise ValueError(f"rows of {OPTIMUM}")
    except (KeyError, TypeError, ValueError) as error:
        what = f"no study: {printable(error)!r}"
        raise ResultsError(what, where=str(path), expected="a file of sagasim oracle") from None
    return Study(rows, **counts, pins=content["pins"])


def _row(row: Mapping[str, Any]) -> Row:
    blocks = {key: None if row[key] is None else _count(row[key]) for key in ("hits", "regenerated", "elsewhere")}
    best = None if row["optimum"] is None else _count(row["optimum"])
    memory = _finite(row["memory"])
    if row["memory"] is not None and not (memory and memory > 0):
        raise ValueError("memory")
    size = None if row["memory_blocks"] is None else _count(row["memory_blocks"])
    return Row(printable(row["policy"]), memory, size, _count(row["accesses"]), **blocks, optimum=best)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.40} is no count")
    return value
