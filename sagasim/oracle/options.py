"""The options of the command `oracle`, apart from what it does: they are wanted at every start."""

from __future__ import annotations

import argparse

__all__ = ["MEMORY", "TEXT", "add_options"]

TEXT = "tell how far every cache policy is from the best possible on the same accesses"
MEMORY = (0.1, 0.25, 0.5, 1.0, 2.0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of the work and the cluster."""
    parser.add_argument("--run", metavar="DIR", help="folder of an earlier run; or tasks, which are simulated first")
    parser.add_argument("--policies", metavar="A,B,...", help="policies to replay (default: all that can be)")
    memory = ",".join(f"{size:g}" for size in MEMORY)
    parser.add_argument("--memory", metavar="X,Y,...", help=f"parts of the run's blocks (default {memory})")
    parser.add_argument("--pins", metavar="WORD", help="run: calls hold memory as they did; none: calls are instants")
    parser.add_argument("--export", metavar="FORMAT", help="write the accesses too: oracleGeneral or csv")
    parser.add_argument("--preset", metavar="NAME", help="the served system that is simulated first")
