"""The command line finds the verb, checks its arguments, hands over, and says in one line what went wrong.

Neither torch nor lightning is imported here, nor jsonargparse before it is needed: help and mistakes are told at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ddim_lightning
from ddim_lightning.cli import VERBS
from ddim_lightning.data.benchmark_config import names_benchmark
from ddim_lightning.report.console import say
from ddim_lightning.report.mistakes import DEBUG, explain, get_nearest
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
    """Run the command line with the arguments, by default those of the process, and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # For classes of one's own the current folder is looked into, and last: it may hold a stray `lightning.py`.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
        if argv is None:  # the process is ours
            keep_freed_memory()
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        home, name, options = _read([word for word in words if word != "--debug"])
        if home in ("commands", "lightning_cli"):  # find out whether torch and torchvision fit
            importlib.import_module("ddim_lightning.models.torch_pair")
        return int(getattr(importlib.import_module(f"ddim_lightning.cli.{home}"), name)(**options))
    except (SystemExit, KeyboardInterrupt) as stop:
        # An exit is how argparse ends after --help and --print-config, and how Lightning ends after Ctrl-C.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            return stop.code if isinstance(stop.code, int) else DONE
        failure, status = "interrupted", INTERRUPTED
    except Exception as error:
        if "--debug" in words or os.environ.get(DEBUG, "0") not in {"", "0"}:
            traceback.print_exc()
        failure, status = explain(error), WRONG_USAGE if isinstance(error, argparse.ArgumentError) else FAILED
    say(f"error: {failure}")
    return status


def _read(words: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Read and check the arguments: the module and the name of the function that does the work, and its arguments."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb in ("edit", "demo", "export") or (verb == "benchmark" and names_benchmark("".join(rest[:1]))):
        from ddim_lightning.cli.checks import begin, check_edit, check_model
        from ddim_lightning.cli.parser import read_options
        from ddim_lightning.output.suite import open_benchmark

        options = read_options(verb, rest)
        if verb == "edit":
            check_edit(**options)
        if verb == "benchmark":
            options["benchmark"] = open_benchmark(**options)
        begin(**options)
        if verb != "demo":
            check_model(**options)  # which may ask the hub
        return "commands", verb, options
    if verb in ("predict", "fit", "validate"):
        from ddim_lightning.cli.texts import hide_words
        from ddim_lightning.engine.shipped import find_configs

        # Lightning knows --data.num-frames=9 as --data.num_frames=9.
        words = [re.sub("(?<=^--)[^=]+", lambda flag: flag[0].replace("-", "_"), word) for word in hide_words(rest)]
        flags = find_configs([word for word in words if word != "--json"])
        if sys.stderr.isatty():
            print("loading Lightning ...", file=sys.stderr, flush=True)
        return "lightning_cli", "run_lightning", {"verb": verb, "flags": flags, "as_json": "--json" in rest}
    if verb == "benchmark":
        return "shipped", "benchmark", {"words": rest}
    if verb == "--print-completion":
        from ddim_lightning.cli.parser import make_completion

        text = make_completion("".join(rest))
    elif verb in ("check", "report", "metrics"):
        from ddim_lightning.cli.parser import TELLERS, read_options

        text = TELLERS[verb](**read_options(verb, rest))
    elif verb == "env" and set(rest) <= {"--json"}:
        # Straight from the report, since it must answer where lightning cannot be imported.
        from ddim_lightning.report.environment import format_environment, read_environment

        text = json.dumps(read_environment()) if rest else format_environment(read_environment())
    elif {"--version", "-h", "--help"} & set(words):
        text = f"ddim-lightning {ddim_lightning.__version__}" if verb == "--version" else _HELP
    else:
        rule = f"must begin with one of {', '.join(VERBS)}, got {' '.join(words)!r}{get_nearest(verb, VERBS)}"
        raise argparse.ArgumentError(None, f"the arguments {rule}")
    print(text)
    sys.exit(DONE)
