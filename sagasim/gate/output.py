"""What a gate found: as text, as JUnit XML, and as annotations of GitHub. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from sagasim.gate.baseline import Baseline
from sagasim.gate.judge import Judged, Verdict, allowed
from sagasim.report import aligned, number

__all__ = ["github", "junit", "resolution", "sentence", "table"]


def table(judged: Judged) -> str:
    """Every metric that moved, those that fail first; how many did not."""
    moved = [verdict for verdict in judged.verdicts if verdict.word != "same"]
    rows = [["case", "metric", "baseline", "now", "change", "allowed", "verdict"]]
    rows += [
        [one.case, one.metric, number(one.before), number(one.now), _change(one), _allowed(one), one.word]
        for one in moved
    ]
    parts = [aligned(rows, left=2)] if moved else []
    return "\n".join([*parts, _same(judged)])


def _same(judged: Judged) -> str:
    same = sum(verdict.word == "same" for verdict in judged.verdicts)
    metrics = f"{same} of {len(judged.verdicts)} metrics are as in the baseline"
    if not judged.other_runs:
        return f"unchanged: {judged.runs} runs have the digests of the baseline; {metrics}"
    return f"{judged.other_runs} of {judged.runs} runs have other digests than in the baseline; {metrics}"


def _change(verdict: Verdict) -> str:
    if verdict.change is None:
        return "-"
    return f"{100 * verdict.change:+.2f} %" if verdict.before else f"{verdict.change:+.3g}"


def _allowed(verdict: Verdict) -> str:
    return _limit(verdict.allowed, verdict.before)


def _limit(part: float, mean: float) -> str:
    return f"{100 * part:.2f} %" if mean else f"{part:.3g}"


def sentence(judged: Judged, path: str) -> str:
    """The verdict in one line."""
    failed = sum(verdict.fails for verdict in judged.verdicts)
    better = sum(verdict.word == "better" for verdict in judged.verdicts)
    beside = f", {better} better" if better else ""
    return f"gate: {failed or 'no'} metric{'' if failed == 1 else 's'} worse than {path} allows{beside}"


def told(verdict: Verdict) -> str:
    """One verdict as a sentence."""
    now = number(verdict.now) if verdict.now is not None else "nothing"
    return (
        f"{verdict.metric} of {verdict.case}: {number(verdict.before)} -> {now}, {_change(verdict)} "
        f"({_allowed(verdict)} is allowed): {verdict.word}"
    )


def junit(judged: Judged) -> str:
    """A test suite for each case, a test for each metric; what moved within its tolerance passes with a note."""
    root = ET.Element("testsuites", {"name": "sagasim gate", **_counts(judged.verdicts)})
    for case in sorted({verdict.case for verdict in judged.verdicts}):
        own = sorted((one for one in judged.verdicts if one.case == case), key=lambda one: one.metric)
        suite = ET.SubElement(root, "testsuite", {"name": case, **_counts(own), "skipped": "0"})
        for verdict in own:
            test = ET.SubElement(suite, "testcase", classname=f"sagasim.gate.{case}", name=verdict.metric)
            if verdict.fails:
                ET.SubElement(test, "failure", message=told(verdict), type=verdict.word).text = told(verdict)
            elif verdict.word != "same":
                ET.SubElement(test, "system-out").text = told(verdict)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _counts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    return {"tests": str(len(verdicts)), "failures": str(sum(one.fails for one in verdicts)), "errors": "0"}


def github(judged: Judged, path: str) -> str:
    """Workflow commands of GitHub: an error for what fails, a notice for what is better. path: of the baseline."""
    lines = []
    for verdict in judged.verdicts:
        if verdict.fails or verdict.word == "better":
            level = "error" if verdict.fails else "notice"
            title = _property(f"sagasim gate: {verdict.metric} is {verdict.word}")
            lines.append(f"::{level} file={_property(path)},title={title}::{_data(told(verdict))}")
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def resolution(baseline: Baseline) -> str:
    """The smallest change that fails, of each metric in each case; without % where the mean is 0."""
    rows = [["fails beyond", *baseline.cases]]
    for path, rule in baseline.settings.metrics.items():
        known = [case.metrics.get(path) for case in baseline.cases.values()]
        rows.append([path, *("-" if one is None else _limit(allowed(one, rule), one.mean) for one in known)])
    return aligned(rows)
