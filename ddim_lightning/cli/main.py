"""The command line: finds the verb, checks its arguments, hands over, and says in one line what went wrong.

Neither torch nor lightning is imported here, nor jsonargparse before it is needed: ``--help`` answers at once, and a
wrong argument or path is told in a fraction of a second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ddim_lightning
from ddim_lightning.cli import VERBS
from ddim_lightning.cli.mistakes import DEBUG, explain, get_nearest
from ddim_lightning.runtime.allocator import keep_freed_memory

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
_LISTED = "\n".join(f"  {verb:<11}{what}" for verb, what in VERBS.items())
_HELP = f"""usage: ddim-lightning VERB ...

DDIM inversion and prompted editing of videos with CogVideoX.

{_LISTED}

  --version, --help
  --print-completion bash|zsh|fish    print a script that completes verbs and flags; needs shtab
  --debug                             with a verb: show the traceback of an error, as {DEBUG}=1 does

`ddim-lightning VERB --help` says what a verb takes.
exit status: 0 done, 3 some clips were skipped, 2 wrong usage, 130 interrupted, 1 any other failure"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process when ``None``.

    Returns:
        The exit status: 0 when all is done, 3 when some clips were skipped, 2 for wrong usage, 130 when interrupted,
        1 for any other failure.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get(DEBUG, "0") not in {"", "0"}
    try:
        # For classes of one's own: the current folder is where `python -m` looks, and a console script does not.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        if argv is None:  # the process is ours
            keep_freed_memory()
        # A command and no call, so that few frames stand between here and the work.
        command = _find_command([word for word in words if word != "--debug"])
        return command()
    except SystemExit as stop:  # how argparse ends after --help and --print-config
        if not isinstance(stop.__context__, KeyboardInterrupt):  # and how Lightning ends after Ctrl-C
            return stop.code if isinstance(stop.code, int) else DONE
        failure, status = "interrupted", INTERRUPTED
    except KeyboardInterrupt:
        failure, status = "interrupted", INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        failure, status = explain(error), WRONG_USAGE if isinstance(error, argparse.ArgumentError) else FAILED
    print(f"error: {failure}", file=sys.stderr)
    return status


def _find_command(words: Sequence[str]) -> Callable[[], int]:
    """Find the verb, read and check its arguments, and import what does the work."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    match verb:
        case "edit" | "demo" | "export":
            return _find_own(verb, rest)
        case "predict" | "fit" | "validate":
            return _find_lightning(verb, rest)
        case "benchmark":
            return partial(_load("shipped", "benchmark"), rest)
        case "env" if set(rest) <= {"--json"}:
            return partial(_print_environment, as_json=bool(rest))
        case "--version":
            text = f"ddim-lightning {ddim_lightning.__version__}"
        case _ if verb in ("-h", "--help") or {"-h", "--help"} & set(rest):
            text = _HELP
        case "--print-completion":
            text = _load("parser", "make_completion")("".join(rest))
        case _:
            meant = get_nearest(verb, VERBS)
            rule = f"the arguments must begin with one of {', '.join(VERBS)}, got {' '.join(words)!r}{meant}"
            raise argparse.ArgumentError(None, rule)
    return partial(_print, text)


def _find_own(verb: str, words: Sequence[str]) -> Callable[[], int]:
    from ddim_lightning.cli.checks import check_edit, check_places
    from ddim_lightning.cli.parser import read_options

    options = read_options(verb, words)
    if verb == "edit":
        check_edit(**options)
    check_places(options["run"], options.get("method"))
    if not options["run"].quiet:
        print(f"loading {getattr(options.get('method'), 'model', 'tiny')} ...", file=sys.stderr, flush=True)
    _open_door()
    return partial(_load("commands", verb), **options)


def _find_lightning(verb: str, words: Sequence[str]) -> Callable[[], int]:
    from ddim_lightning.cli.shipped import find_configs

    flags = find_configs([_with_underscores(word) for word in words if word != "--json"])
    if sys.stderr.isatty():
        print("loading Lightning ...", file=sys.stderr, flush=True)
    _open_door()
    return partial(_load("lightning_cli", "run_lightning"), verb, flags, as_json="--json" in words)


def _load(module: str, name: str) -> Callable[..., Any]:
    command: Callable[..., Any] = getattr(importlib.import_module(f"ddim_lightning.cli.{module}"), name)
    return command


def _open_door() -> None:
    """Find out whether torch and torchvision fit, before lightning stumbles over them."""
    import ddim_lightning.models  # noqa: F401


def _with_underscores(word: str) -> str:
    """``--data.num-frames=9`` as Lightning knows it: ``--data.num_frames=9``."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _print(text: str) -> int:
    print(text)
    return DONE


def _print_environment(*, as_json: bool) -> int:
    # Straight from the report, not by way of the commands: it must answer where lightning cannot be imported.
    from ddim_lightning.report.environment import read_environment

    report = read_environment()
    rows = [(name, version or "not installed") for name, version in report["versions"].items()]
    rows += [("platform", report["platform"]), ("CUDA", report["cuda"] or "none")]
    for gpu in report["gpus"]:
        rows += [("GPU", f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['compute_capability']}")]
    rows += [("broken", f"{name}: {reason}") for name, reason in report["broken"].items()]
    return _print(json.dumps(report) if as_json else "\n".join(f"{name:<16}{value}" for name, value in rows))
