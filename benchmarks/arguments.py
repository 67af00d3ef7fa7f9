"""Benchmarks of speed and memory share a command line, so that a flag means the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

QUICK_STEPS = 10


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Make a parser with what all of them take: which model, where and in what, and what to leave behind.

    Args:
        name: Of the benchmark.
        description: Its docstring, of which the first line is shown.
    """
    parser = argparse.ArgumentParser(prog=f"ddim-lightning benchmark {name}", description=description.splitlines()[0])
    parser.add_argument("--full-size", action="store_true", help="CogVideoX-5B's sizes at random weights, not tiny's")
    add_place(parser)
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    add_budget(parser)
    add_output(parser)
    return parser


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add where and in what a model works."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype", default="bfloat16" if cuda else "float32", choices=("bfloat16", "float16", "float32")
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add how long a benchmark may take."""
    parser.add_argument(
        "--budget", type=read_seconds, metavar="SECONDS", help="start no case that would end later (no limit)"
    )


def add_output(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add what every result has: the commit that it is of, and the folder that it goes to.

    Args:
        parser: The parser.
        required: Whether there must be a folder, as for a benchmark that keeps its records there.
    """
    parser.add_argument("--commit", help="of a copy that is no checkout; with -dirty where files were changed")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", required=required, help="for result.json, README.md and the plots"
    )


def read_count(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def read_seconds(text: str) -> float:
    """Read a number above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a kernel."""
    parser.add_argument("--attention", default="auto", help="a kernel's name, or the path of a function (auto)")


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add the number of steps, and a short cut to few."""
    parser.add_argument("--steps", type=read_count, default=50, help="steps of each direction (50)")
    told = f"{QUICK_STEPS} steps: minutes at full size"
    parser.add_argument("--quick", dest="steps", action="store_const", const=QUICK_STEPS, help=told)
