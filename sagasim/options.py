"""The options of the command line, and what configuration they make. Nothing is printed here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sagasim import __version__
from sagasim.errors import ConfigError, nearest

__all__ = ["KEYS", "Command", "check_exclusive", "layers", "make_parser"]

Command = Callable[[argparse.Namespace], int | None]  # the exit status, 0 if it says nothing

# Options that set one key of the configuration: option, key, what stands for its value, help
_WORK = (
    ("trace", "trace", "FILE|NAME", "recorded tasks: an embedded trace or a file"),
    ("workload", "workload", "NAME", "generated tasks; NAME:key=value,... sets options of the generator"),
    ("mix", "mix", "NAME@WEIGHT+...", "tasks of several traces and workloads, drawn by weight"),
    ("tasks", "tasks", "N", "how many tasks (default: the whole trace; 100 generated ones)"),
    ("rate", "rate_per_min", "TASKS_PER_MIN", "arrivals at this rate, Poisson unless --arrivals says otherwise"),
    ("load", "load", "FRACTION", "arrivals at this fraction of the cluster's capacity, up to 2"),
    ("concurrency", "concurrency", "N", "so many tasks at a time, each followed by the next"),
    ("arrivals", "arrivals", "WORD", "recorded, at-once, poisson, bursty, diurnal or closed (default: as it fits)"),
    ("tenants", "tenants", "NAME@WEIGHT+...", "give each task to a tenant, drawn by weight"),
    (
        "over-length",
        "over_length",
        "WORD",
        "tasks longer than the model: drop, truncate or extend (the model's length)",
    ),
    ("seed", "seed", "S", "of everything drawn at random (default 0)"),
)
_CLUSTER = (
    ("gpus", "gpus", "N", "GPUs in all (default 64)"),
    ("gpu", "gpu", "NAME", "see `sagasim gpus` (default h200)"),
    ("model", "model", "NAME", "see `sagasim models` (default llama-3.1-70b)"),
    ("tp", "tp", "N", "GPUs that share one copy of the model: 1, 2, 4 or 8 (default 4)"),
    ("max-model-len", "max_model_len", "N", "longest context in tokens (default: the model's)"),
)
_POLICIES = (
    ("route", "route", "SPEC", "which replica gets a call; see `sagasim policies`"),
    ("order", "order", "SPEC", "which waiting call comes first"),
    ("evict", "evict", "SPEC", "which idle context loses its blocks"),
    ("predict", "predict", "SPEC", "what is told to policies that see the workflow"),
    ("balance", "balance", "SPEC", "which waiting call moves to another replica"),
    ("prefetch", "prefetch", "SPEC", "when what a coming call needs is brought back from host memory"),
    ("preempt", "preempt", "SPEC", "which running calls give way to a waiting one"),
)
_READING = (  # of the trace commands: how a file is read
    ("block-tokens", "N", "tokens of a block, for agentic_mooncake (default 512)"),
    ("turns", "FILE", "which request answers which, for requests with block ids"),
    ("share", "WORD", "prefix (default) or session: whether sessions and spans share their instructions"),
    ("seed", "S", "of what is drawn because the source lacks it (default 0)"),
)
_EXCLUSIVE = (("trace", "workload", "mix"), ("rate", "load", "concurrency"))
KEYS = {option.replace("-", "_"): key for option, key, _, _ in (*_WORK, *_CLUSTER, *_POLICIES)}


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, expected=f"see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise ConfigError(f"unknown command {value!r}", where=self.prog, expected=nearest(value, action.choices))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What argparse does not know is told with the nearest option this very command has."""
        parsed, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("--"):
                options = [o for o in self._option_string_actions if o.startswith("--")]
                raise ConfigError(f"unknown option {word!r}", where=self.prog, expected=nearest(word, options))
            self.error(f"unexpected {word!r}")
        return parsed, unknown


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser; `commands` holds the function of each command, those of `trace` as `trace validate`."""
    parser = _Parser(prog="sagasim", description="Simulate LLM agents served on a GPU cluster.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sagasim {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = _add(subparsers, "run", "simulate once and write a folder of results", commands["run"])
    run.add_argument("--preset", metavar="NAME", help="vllm-0.15 (default), vllm-0.6, saga, saga-no-..., throughput")
    run.add_argument("--timeline", metavar="FILE", help="write a Perfetto trace too; FILE.gz is compressed")
    _experiment_options(run)
    compare = _add(subparsers, "compare", "simulate several presets on the same tasks", commands["compare"])
    compare.add_argument("--presets", metavar="A,B,...", help="presets; differences are from the first")
    compare.add_argument(
        "--variant",
        metavar="'NAME=PRESET KEY=VALUE ...'",
        action="append",
        default=[],
        help="another system: a preset with some keys changed, under a name of its own; as often as wanted",
    )
    compare.add_argument("--seeds", metavar="N", default="5", help="how many seeds, from --seed on (default 5)")
    compare.add_argument("--no-slo", action="store_true", help="measure no base times for service levels")
    _experiment_options(compare)
    _sweep_commands(subparsers, commands)
    _add(subparsers, "policies", "list the policies and their parameters", commands["policies"])
    _add(subparsers, "workloads", "list the generators of tasks and their options", commands["workloads"])
    check = _add(subparsers, "check", "test that a policy keeps its contract", commands["check"])
    check.add_argument("spec", metavar="SPEC", help="name, name:key=value,... or ./file.py:name")
    _oracle_command(subparsers, commands["oracle"])
    _gate_command(subparsers, commands["gate"])
    _report_command(subparsers, commands["report"])
    _trace_commands(_add(subparsers, "trace", "look at, check and convert traces"), commands)
    _calibration_commands(subparsers, commands)
    _add(subparsers, "gpus", "list the GPUs", commands["gpus"])
    _add(subparsers, "models", "list the models", commands["models"])
    _add(subparsers, "compile", "compile the engine for this Python: twice as fast, same results", commands["compile"])
    return parser


def _add(subparsers: Any, name: str, text: str, function: Command | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser


def _trace_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in (
        ("validate", "check every task of a trace"),
        ("stats", "numbers that describe a trace"),
        ("convert", "write a trace in another format"),
    ):
        command = _add(subparsers, name, text, commands[f"trace {name}"])
        command.add_argument("trace", metavar="FILE|NAME")
        for option, metavar, what in _READING:
            command.add_argument(f"--{option}", metavar=metavar, help=what)
        if name == "stats":
            command.add_argument("--figure", metavar="FILE", help="draw them too, as a .png")
            command.add_argument("--json", action="store_true", help="print them as JSON")
        if name == "convert":
            command.add_argument("--out", metavar="FILE", required=True, help="a .jsonl or .jsonl.gz file")
            command.add_argument("--to", metavar="FORMAT", default="native", help="native (default), agentic_mooncake")


def _calibration_commands(subparsers: Any, commands: Mapping[str, Command]) -> None:
    from sagasim.calibration_commands import COMMANDS, add_options

    calibrate = _add(subparsers, "calibrate", "fit, check and show calibrations")
    under = calibrate.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        add_options(name, _add(under, name.split()[1], text, commands[name]))
    text = "compare the simulator with a recorded run of a real server, or with concurrency curves"
    add_options("validate", _add(subparsers, "validate", text, commands["validate"]))


def _sweep_commands(subparsers: Any, commands: Mapping[str, Command]) -> None:
    from sagasim.sweeping.options import MERGE_TEXT, SWEEP_TEXT, add_merge_options, add_sweep_options

    add_sweep_options(_add(subparsers, "sweep", SWEEP_TEXT, commands["sweep"]))
    add_merge_options(_add(subparsers, "merge", MERGE_TEXT, commands["merge"]))


def _oracle_command(subparsers: Any, command: Command) -> None:
    from sagasim.oracle.options import TEXT, add_options

    parser = _add(subparsers, "oracle", TEXT, command)
    add_options(parser)
    _experiment_options(parser)


def _report_command(subparsers: Any, command: Command) -> None:
    from sagasim.html_report.options import TEXT, add_options

    add_options(_add(subparsers, "report", TEXT, command))


def _gate_command(subparsers: Any, command: Command) -> None:
    from sagasim.gate.options import TEXT, add_options

    add_options(_add(subparsers, "gate", TEXT, command))


def _experiment_options(parser: argparse.ArgumentParser) -> None:
    for title, options in (("tasks", _WORK), ("cluster", _CLUSTER), ("policies, over the preset's", _POLICIES)):
        group = parser.add_argument_group(title)
        for option, _, metavar, text in options:
            group.add_argument(f"--{option}", metavar=metavar, help=text)
    group = parser.add_argument_group("everything else")
    group.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any key of config.toml")
    group.add_argument("--config", metavar="FILE", help="a configuration; the options override it")
    group.add_argument("--reference", action="store_true", help="simulate every step and block singly (slow)")
    group.add_argument("--no-figures", action="store_true", help="draw no figure")
    group.add_argument("--out", metavar="DIR", help="folder to write; it must not exist yet")


def check_exclusive(given: Mapping[str, Any], mark: str = "") -> None:
    """Raise ConfigError if two options are given that say the same thing; mark: what stands before an option."""
    for group in _EXCLUSIVE:
        both = [f"{mark}{option}" for option in group if given.get(option) is not None]
        if len(both) > 1:
            raise ConfigError(f"{both[0]} and {both[1]} exclude each other", where="options", expected="one of them")


def layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The configuration file, if any, and above it what the options say."""
    from sagasim.config import parse_assignment, parse_value, read_config

    given = vars(args)
    check_exclusive(given, "--")
    options: dict[str, Any] = {"preset": args.preset} if "preset" in args and args.preset is not None else {}
    for option, key, _, _ in (*_WORK, *_CLUSTER, *_POLICIES):
        text = given[option.replace("-", "_")]
        if text is not None:
            options[key] = parse_value(key, text, f"--{option}")
    options.update(parse_assignment(item) for item in args.set)
    if args.reference:
        options["reference"] = True
    return [read_config(args.config), options] if args.config is not None else [options]
