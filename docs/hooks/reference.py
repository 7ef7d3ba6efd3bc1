"""The reference pages, from the parsers, the configuration and the registries themselves."""

from __future__ import annotations

import argparse
import ast
import html
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import sagasim.config
from sagasim.config import ABLATIONS, PRESETS
from sagasim.options import KEYS, make_parser
from sagasim.seams import ARGUMENTS, KINDS, policies
from sagasim.workloads import workloads

__all__ = ["PAGES", "commands_page", "config_keys", "configuration_page", "policies_page", "workloads_page"]

_KINDS = {
    "route": "which replica gets a call",
    "order": "which waiting call comes first",
    "evict": "which idle context loses its blocks",
    "predict": "what policies that see the workflow are told",
    "balance": "which waiting call moves to another replica",
    "prefetch": "when evicted KV is brought back from host memory",
    "preempt": "which running calls give way to a waiting one",
}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines), ""]


def _code(text: object) -> str:
    """Code in a table cell, where a bar would end the cell."""
    return f"<code>{_text(str(text), spans=False)}</code>" if str(text) else ""


def _text(text: str, *, spans: bool = True) -> str:
    """Text in which nothing is markup; `code` stays code, if it is meant so."""
    parts = re.split(r"`([^`]*)`", text) if spans else [text]
    safe = [
        re.sub(r"[*_|`\[\]]", lambda found: f"&#{ord(found[0])};", html.escape(part, quote=False)) for part in parts
    ]
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(safe))


# --- commands ------------------------------------------------------------------------------------------------------


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and all below it that are commands themselves."""
    under = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not under:
        yield parser
    for action in under:
        for below in action.choices.values():
            yield from _parsers(below)


def _option(action: argparse.Action) -> str:
    values = action.metavar if action.nargs != 0 else ""
    values = " ".join(values) if isinstance(values, tuple) else values or ("" if action.nargs == 0 else action.dest)
    words = [f"{option} {values}".rstrip() for option in action.option_strings] or [values]
    return ", ".join(_code(word) for word in words)


def commands_page() -> str:
    """Every command with its options, as `--help` has them."""
    parser = make_parser(defaultdict(lambda: lambda _: None))
    commands = list(_parsers(parser))
    lines = [
        "# Commands",
        "",
        "Made from the command line itself: this is what `sagasim COMMAND --help` says. Results go to stdout, progress"
        " and mistakes to stderr. A command ends with 0; with 1 if the gate found something worse or points of a sweep"
        " failed; with 2 after a mistake of yours (one line says what was expected); with 130 after Ctrl-C.",
    ]
    rows = [[f"[`{c.prog}`](#{_anchor(c.prog)})", _text((c.description or "").rstrip("."))] for c in commands]
    lines += _table(["command", "does"], rows)
    for command in commands:
        lines += ["", f"## {command.prog} {{ #{_anchor(command.prog)} }}", "", _text(command.description or "")]
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        if len(usage) < 110:
            lines += ["", "```text", usage, "```"]
        for group in command._action_groups:
            actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
            actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
            if not actions:
                continue
            title = group.title or ""
            if title not in ("options", "positional arguments"):
                lines += ["", f"**{_text(title)}**"]
            rows = [[_option(action), _text(action.help or "")] for action in actions]
            lines += _table(["argument" if title == "positional arguments" else "option", "meaning"], rows)
    return "\n".join(lines) + "\n"


def _anchor(prog: str) -> str:
    return prog.replace(" ", "-")


# --- configuration -------------------------------------------------------------------------------------------------


def config_keys() -> list[tuple[str, str, str, str, str]]:
    """(group, key, type, default, comment) of every key, as the source of Config has them; else the option's help."""
    path = Path(inspect.getfile(sagasim.config))
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    (body,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Config")
    run = next(_parsers(make_parser(defaultdict(lambda: lambda _: None))))
    helps = {KEYS.get(action.dest, action.dest): action.help or "" for action in run._actions}
    found = []
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or node.value is None or node.end_lineno is None:
            continue
        above = (line.strip() for line in reversed(lines[: node.lineno - 1]))
        group = next(line.removeprefix("# ") for line in above if line.startswith("# "))
        comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("# ")
        key = ast.unparse(node.target)
        kind = ast.unparse(node.annotation).replace(" | None", "")
        default = ast.literal_eval(node.value)
        shown = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        found.append((group, key, kind, shown, comment or helps.get(key, "")))
    return found


def configuration_page() -> str:
    """Every key of a configuration, and the presets."""
    lines = [
        "# Configuration",
        "",
        "One flat list of keys says all that determines a run. Give them in a TOML file (`--config`), as"
        " `--set key=value`, as keywords in Python, or by the options of their own that the"
        " [commands](commands.md#sagasim-run) have. Later layers win: defaults, preset, file, options. A run writes all"
        " of them to `config.toml`, which can be run again.",
        "",
        "No default: taken from the model, the GPU or the trace, or nothing of the kind.",
    ]
    keys = config_keys()
    for group in dict.fromkeys(key[0] for key in keys):
        title, _, rest = group.partition(" (")
        lines += ["", f"## {title.capitalize()}", ""]
        lines += [_text(rest.rstrip(")")[:1].upper() + rest.rstrip(")")[1:] + ".")] if rest else []
        rows = [[_code(k), t, _code(d), _text(c)] for g, k, t, d, c in keys if g == group]
        lines += _table(["key", "type", "default", "meaning"], rows)
    named = [name for name in PRESETS if name not in ABLATIONS]
    lines += ["", "## Presets", "", "A preset is a set of keys; what is given beside it goes over it."]
    every = dict.fromkeys(key for name in named for key in PRESETS[name])
    rows = [[_code(key), *(_code(_shown(PRESETS[name].get(key))) for name in named)] for key in every]
    lines += _table(["key", *(_code(name) for name in named)], rows)
    lines += ["", "`saga` without one of its mechanisms:"]
    rows = [
        [_code(name), ", ".join(_code(f"{key} = {_shown(value)}") for key, value in changes.items())]
        for name, changes in ABLATIONS.items()
    ]
    lines += _table(["preset", "differs in"], rows)
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- registries ----------------------------------------------------------------------------------------------------


def policies_page() -> str:
    """Every policy that comes with sagasim."""
    lines = [
        "# Policies that come with sagasim",
        "",
        "A policy is named on the command line as `NAME` or `NAME:parameter=value,...`. How to write one of your own:"
        " [policies](../policies.md).",
    ]
    for kind in KINDS:
        lines += ["", f"## --{kind} {{ #{kind} }}", "", _text(_KINDS[kind][:1].upper() + _KINDS[kind][1:] + ".")]
        if kind in ARGUMENTS:
            lines[-1] += f" Decides from {_code(ARGUMENTS[kind])}."
        for found in policies(kind):
            lines += ["", f"### {found.name} {{ #{kind}-{found.name} }}", ""]
            marks = [
                ("sees_cache", "sees the caches"),
                ("sees_workflow", "needs a predictor"),
                ("clairvoyant", "clairvoyant: a bound to compare with, not a system to build"),
            ]
            shown = [text for trait, text in marks if getattr(found, trait)]
            lines += [f"*{', '.join(shown)}*", ""] if shown else []
            lines += [*_paragraphs(inspect.getdoc(found.factory) or "")]
            rows = [[_code(name), _code(_default(p.default))] for name, p in found.parameters.items()]
            lines += _table(["parameter", "default"], rows) if rows else []
    return "\n".join(lines) + "\n"


def _paragraphs(docstring: str) -> list[str]:
    """Paragraphs of a docstring; a line that describes a parameter begins one of its own."""
    text = re.sub(r"\n(?=\w+: )", "\n\n", docstring)
    found = [_text(" ".join(paragraph.split())) for paragraph in re.split(r"\n\s*\n", text)]
    return [line for paragraph in found for line in (re.sub(r"^([\w&#;]+): ", r"<code>\1</code>: ", paragraph), "")]


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "must be given"
    return "|".join(map(str, value)) if isinstance(value, tuple) else _shown(value)


def workloads_page() -> str:
    """Every generator and its options."""
    lines = [
        "# Workloads that come with sagasim",
        "",
        "Generators, named as `--workload NAME` or `NAME:option=value,...`; items of a list are separated by `|`. What"
        " each stands for and how close it is: [workloads](../workloads.md).",
    ]
    for found in workloads():
        if not found.task.__module__.startswith("sagasim."):
            continue
        lines += ["", f"## {found.name}", "", _text(found.help)]
        rows = [[_code(name), _code(_default(o.default)), _text(o.help)] for name, o in found.options.items()]
        lines += _table(["option", "default", "meaning"], rows) if rows else []
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands_page,
    "configuration": configuration_page,
    "policies": policies_page,
    "workloads": workloads_page,
}
