"""Calibrations as text for the terminal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sagasim.calibrate.check import Report
from sagasim.cost import StepCost
from sagasim.hardware import data_dir

__all__ = ["check_text", "show_text"]

Aligned = Callable[..., str]
SHOWN = ((1, 1000), (8, 1000), (32, 4000), (128, 4000), (8, 32000))  # decodes and tokens of each
CHUNKS = ((512, 0), (512, 16000), (2048, 0), (8192, 0))  # new and cached tokens


def check_text(report: Report, aligned: Aligned) -> str:
    """Errors of each term against the tables, the worst first, then what the file carries of its own fit."""
    lines = [f"{report.title} against {report.against}", ""]
    if report.compared:
        rows = [["term", "MAPE", "p90", "bias", "rows", "", ""]]
        rows += [[row["term"], *_errors(row), "", row["note"]] for row in report.rows()]
        lines += [_left_notes(rows, aligned), ""]
    rows = [["carried in the file", "MAPE", "p90", "bias", "rows"]]
    carried = sorted(report.carried.items(), key=lambda item: -item[1].get("mape", 0.0))
    rows += [[name, *_errors(told)] for name, told in carried if told.get("n")]
    return "\n".join([*lines, aligned(rows)])


def _errors(row: dict[str, Any]) -> list[str]:
    return [f"{row['mape']:.1%}", f"{row['p90']:.1%}", f"{row['bias']:+.1%}", f"{row['n']}"]


def _left_notes(rows: Sequence[Sequence[str]], aligned: Aligned) -> str:
    """The last column to the left of its place: a note, not a number."""
    width = max(len(row[-1]) for row in rows)
    return "\n".join(
        line.rstrip() for line in aligned([[*row[:-1], row[-1].ljust(width)] for row in rows]).splitlines()
    )


def _beyond(entry: dict[str, Any], **at: int) -> str:
    """A flag for what lies beyond the table that an entry was fitted on."""
    measured = entry.get("measured", {})
    out = [name for name, value in at.items() if name in measured and value > measured[name][1]]
    return f"beyond the table in {' and '.join(out)}" if out else ""


def show_text(calibration: dict[str, Any], name: str, aligned: Aligned) -> str:
    """What a calibration says, and where it has it from."""
    provenance = calibration["provenance"]
    head = f"{calibration['model']} on {calibration['tp']} {calibration['gpu']}, {calibration['dtype']}"
    lines = [f"{name}: {head}; {provenance['status']}", ""]
    rows = [["term", "status", "from"]]
    named = [
        (key, calibration[key])
        for key in ("decode_attention", "mixed_attention", "prefill_attention", "host")
        if key in calibration
    ]
    terms = [(term["name"], term) for key in ("token_terms", "sequence_terms") for term in calibration[key]]
    rows += [[term, told.get("status", "-"), told.get("source", "-")] for term, told in (*terms, *named)]
    lines += [aligned(rows, left=3), ""]
    cost = StepCost(calibration, max_tokens=8192, max_seqs=1024, asynchronous=True)
    rows = [["step", "ms", ""]]
    for decodes, context in SHOWN:
        time = cost.step(decodes, decodes * context, context, [])
        beyond = _beyond(calibration["decode_attention"], batch=decodes, context=context)
        rows.append([f"{decodes} decodes of {context:,} tokens", f"{time / 1e9:.2f}", beyond])
    for new, cached in CHUNKS:
        time = cost.step(0, 0, 0, [(new, cached)])
        beyond = _beyond(calibration["prefill_attention"], tokens=new, cached=cached)
        rows.append([f"a chunk of {new:,} on {cached:,} cached tokens", f"{time / 1e9:.2f}", beyond])
    lines += [_left_notes(rows, aligned), ""]
    for source in provenance.get("sources", []):
        path = data_dir() / "calibration" / source["file"]
        if path.is_file():
            same = hashlib.sha256(path.read_bytes()).hexdigest() == source["sha256"]
            state = "embedded, checksum right" if same else "embedded, CHECKSUM DIFFERS"
        else:
            state = "not embedded"
        lines.append(f"{source['file']} ({source.get('repository', '-')}, {source.get('licence', '-')}): {state}")
    return "\n".join([*lines, *(f"note: {note}" for note in provenance.get("notes", []))])
