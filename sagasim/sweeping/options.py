"""The options of `sweep` and `merge`, apart from what they do: they are wanted at every start."""

from __future__ import annotations

import argparse

__all__ = ["MERGE_TEXT", "SWEEP_TEXT", "add_merge_options", "add_sweep_options"]

SWEEP_TEXT = "run a grid or a list of configurations with several seeds; go on where it was interrupted"
MERGE_TEXT = "put the points of several sweeps into one folder"


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.toml", help="keys of all points, [grid] or [[points]], seeds")
    parser.add_argument("--out", metavar="DIR", help="folder of the sweep; points that it holds are not run again")
    parser.add_argument("--jobs", metavar="N", help="points at a time (default: one for each CPU)")
    parser.add_argument("--engine", metavar="WORD", default="local", help="local (default) or ray")
    parser.add_argument("--address", metavar="ADDRESS", help="of the Ray cluster, as ray.init takes it")


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folders of sweeps")
    parser.add_argument("--out", metavar="DIR", help="a new folder, or one of a sweep, which then holds them all")
