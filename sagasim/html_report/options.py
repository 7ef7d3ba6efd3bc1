"""The options of the command `report`, apart from what it does: they are wanted at every start."""

from __future__ import annotations

import argparse

__all__ = ["TEXT", "add_options"]

TEXT = "show a folder of results as tables and as one HTML page"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="what run, compare, sweep or oracle wrote")
    parser.add_argument("--out", metavar="FILE.html", help="the page (default: DIR/report.html)")
    parser.add_argument("--base", metavar="NAME", help="system that the others are compared with (default: vllm-0.15)")
    parser.add_argument(
        "--metric", metavar="NAME", help="what heat maps and lines show (default: tct_s.mean; see results.parquet)"
    )
