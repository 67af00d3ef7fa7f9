"""A mistake is told in one line: what was wrong, and which known name was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable

DEBUG = "DDIM_LIGHTNING_DEBUG"  # the environment variable that shows the traceback of an error
_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")
_UNKNOWN = re.compile(r"(?i)unrecognized arguments: (-\S+)|option '([^']+)' is not|not accept option '([^']+)'")
_MOST = 800  # letters of a message; what was got may be a whole file
_KEY = re.compile(r'Parser key "([\w.]+)":')
_WANTED = re.compile(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.+?)\])")
_GOT = re.compile(r"(?:Got value|Given value): (.*)")


def get_nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` with the nearest known name, or nothing."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def suggest(message: str, flags: Iterable[str]) -> str:
    """Add the nearest of the flags to a message of jsonargparse about an unknown flag or key."""
    found = _UNKNOWN.search(message)
    if found is None or "did you mean" in message:  # a parser raises what the parser inside it raised
        return message
    name = next(group for group in found.groups() if group).partition("=")[0]
    known = flags if name.startswith("-") else (flag.lstrip("-").replace("-", "_") for flag in flags)
    return message + get_nearest(name, known)


def list_flags(parser: argparse.ArgumentParser) -> list[str]:
    """List the flags of a parser and of its verbs."""
    verbs = [verb for action in parser._actions if isinstance(action.choices, dict) for verb in action.choices.values()]
    return [*parser._option_string_actions, *(flag for verb in verbs for flag in list_flags(verb))]


def explain(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, RecursionError):
        return "an argument or a file is nested too deeply to be read"
    said = _say_type(str(error)) if isinstance(error, argparse.ArgumentError) else None
    return _bound(said or _say_rest(error))


def _bound(message: str) -> str:
    return message if len(message) <= _MOST else f"{message[: _MOST // 2]} ... {message[-_MOST // 2 :]}"


def _say_rest(error: Exception) -> str:
    # What jsonargparse raises is a tree with the reason somewhere among its leaves.
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line.removeprefix("- ") for line in lines if line and not line.startswith(_NOISE)]
    if any(line.startswith(("Traceback", "Original Traceback")) for line in lines):
        return lines[-1]  # raised in another process, which sends its whole traceback as the message
    message = _KEY.sub(r"\1:", " ".join(lines))
    expected = isinstance(error, argparse.ArgumentError | ValueError | OSError | ImportError | NotImplementedError)
    if message and (expected or type(error).__name__ == "MisconfigurationException"):
        return message
    return f"{type(error).__name__}: {message} ({DEBUG}=1 shows where)"


def _say_type(message: str) -> str | None:
    """Say what jsonargparse found wrong with a value as we say it; nothing where it is about something else."""
    keys, wanted, got = _KEY.findall(message), _WANTED.findall(message), _GOT.search(message)
    if not (keys and wanted and got) or "Namespace(" in got[1] or _UNKNOWN.search(message):
        return None
    names = dict.fromkeys(kind or choices for kind, choices in wanted)
    return f"{keys[-1]}: must be {' or '.join(names).replace('NoneType', 'null')}, got {got[1]!r}"
