"""The options of the command `gate`, apart from what it does: they are wanted at every start."""

from __future__ import annotations

import argparse

__all__ = ["TEXT", "add_options"]

TEXT = "for CI: compare a small fixed set of runs with a baseline, and exit with 1 if anything is worse"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options; nothing of the work or the cluster, which the baseline holds."""
    parser.add_argument("--baseline", metavar="FILE", required=True, help="what to compare with, as --update writes it")
    parser.add_argument("--update", action="store_true", help="write the baseline as things are now, and judge nothing")
    parser.add_argument(
        "--from",
        dest="set_file",
        metavar="SET.toml",
        help="with --update: cases, seeds and metrics (default: those of the baseline; of a new one, a set of presets)",
    )
    parser.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit XML too")
    parser.add_argument(
        "--github", action="store_true", help="print annotations of GitHub too (always where GITHUB_ACTIONS is true)"
    )
    parser.add_argument("--jobs", metavar="N", help="runs at a time (default: one for each CPU core)")
