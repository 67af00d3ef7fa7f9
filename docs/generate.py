"""Writes ``command-line.md``, the page of the command line, from what the program says of itself.

    python docs/generate.py            writes the page beside this file
    python docs/generate.py --check    tells whether it is up to date

The page holds the ``--help`` of every verb as it stands, at a fixed width and without colors: the same program makes
the same page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).resolve().with_name("command-line.md")
WIDTH = 100

VERBS = {
    "edit": "Edits one video under one or more prompts. Its flags are the fields of the option classes "
    "([Python API](api.md#options)).",
    "predict": "Runs the module over every clip of a data module. `predict`, `fit` and `validate` are LightningCLI: "
    "`--config NAME` reads YAML, `--print_config` writes it.",
    "fit": "Trains the parts of the model that `model.training` names; see [Training](training.md).",
    "validate": "Computes the validation loss.",
    "demo": "Edits clips whose right answers are known, with the bundled model.",
    "export": "Writes the network as files that PyTorch alone can run; see "
    "[Performance and memory](performance.md#exported-artifacts).",
    "check": "Says what would be loaded of a model, without loading it; see "
    "[Models](models.md#what-a-model-is-and-needs).",
    "report": "Writes the page that shows a run in a browser, or compares two; see "
    "[Where results go](results.md#looking-at-a-run).",
    "metrics": "Measures videos against others; see [Metrics](metrics.md).",
    "benchmark": "Runs a benchmark of this package ([Benchmarks](benchmarks.md)), or a public one on its files "
    "([Public benchmarks](public-benchmarks.md)).",
}
"""By verb, what stands above its help; ``env`` has none of its own."""

LIGHTNING = ("predict", "fit", "validate")
"""Verbs whose help lists everything a Trainer takes: it is folded, and its usage, which repeats it, is left out."""

INTRO = """\
# Command line

<!-- Written by docs/generate.py; do not edit. -->

The package installs one command, `ddim-lightning`. `python -m ddim_lightning` is the same. This page is what the
program prints under `--help`.

```bash
ddim-lightning edit clips/clip.mp4 --prompt "a red circle moving right on a blue background" --output out
ddim-lightning predict --config edit --data.videos clips --writer.output_dir out
```

| exit status | meaning |
|---|---|
| 0 | everything was done |
| 1 | a failure that is none of those below |
| 2 | wrong usage: an argument that cannot be read |
| 3 | some clips were skipped; the last lines say which. Under `torchrun`: 0 |
| 130 | interrupted |

With the extra `completion`, `ddim-lightning --print-completion bash` (or `zsh`, `fish`) prints a script that completes
verbs and flags, to be sourced by the shell:

```text
eval "$(ddim-lightning --print-completion bash)"
```
"""

_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def read_help(arguments: Sequence[str]) -> str:
    """Return what the program prints under ``--help``, at a fixed width and without colors.

    Args:
        arguments: What stands before ``--help``: nothing, or a verb.

    Raises:
        RuntimeError: The program failed.
    """
    environment = os.environ | {
        "COLUMNS": str(WIDTH),
        "NO_COLOR": "1",
        "PYTHON_COLORS": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", "-m", "ddim_lightning", *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    # jsonargparse puts control characters into its help.
    text = "".join(letter for letter in _COLORS.sub("", done.stdout) if letter == "\n" or letter.isprintable())
    text = text.replace(str(ROOT), ".").replace(str(Path.home()), "~")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def make_section(verb: str, text: str) -> str:
    """Make the section of a verb: a heading, a sentence, and its help."""
    body = read_help([verb])
    if verb in LIGHTNING:
        _, _, options = body.partition("\n\n")
        body = f"usage: ddim-lightning {verb} [options]\n\n{options}"
    block = f"```text\n{body}\n```"
    if verb in LIGHTNING:
        block = f'??? note "All options of {verb}"\n\n{textwrap.indent(block, "    ")}'
    return f"## {verb}\n\n{text}\n\n{block}\n"


def make_page() -> str:
    """Make the page."""
    parts = [INTRO, f"## All verbs\n\n```text\n{read_help([])}\n```\n"]
    parts += [make_section(verb, text) for verb, text in VERBS.items()]
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; the exit status of ``--check`` is 1 when it is out of date."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    page = make_page()
    if words:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
