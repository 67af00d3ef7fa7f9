"""The parsers of `edit`, `export` and `demo` are made by jsonargparse from the options' classes, without torch."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from ddim_lightning.cli import VERBS
from ddim_lightning.cli.options import Frames, Graphs, Method, Run, Video
from ddim_lightning.cli.texts import LOADER, hide, hide_words, reveal, reveal_yaml
from ddim_lightning.engine.check import Model, tell_model
from ddim_lightning.engine.config import CompileMode, Outputs, Runtime, Schedule, Source
from ddim_lightning.engine.recommended import fill_recommended
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.output.comparison import Comparison
from ddim_lightning.output.metrics import tell_metrics
from ddim_lightning.output.page import Report, tell_report
from ddim_lightning.output.suite import Suite
from ddim_lightning.report.mistakes import list_flags, suggest


def _all_but(kind: type[Any], *names: str) -> set[str]:
    return {field.name for field in fields(kind)} - set(names)


_GROUPS: dict[str, dict[type[Any], set[str]]] = {
    "edit": {kind: set() for kind in (Video, Run, Frames, Method, Source, Schedule, Runtime)} | {Outputs: {"on_error"}},
    "export": {Run: {"overwrite"}, Graphs: set(), Frames: _all_but(Frames, "num_frames", "height", "width")}
    | {Method: {"inversion_prompt", "seed"}, Source: set(), Schedule: {"timestep_spacing", "zero_snr"}}
    | {Runtime: _all_but(Runtime, "dtype", "attention", "require_rotary")},
    "demo": {Run: {"overwrite"}},
    "check": {Model: set(), Source: set(), Runtime: _all_but(Runtime, "dtype", "context", "require_rotary")},
    "report": {Report: set()},
    "metrics": {Comparison: set(), Networks: set()},
    "benchmark": {kind: set() for kind in (Suite, Run, Method, Source, Schedule, Runtime, Outputs)},
}
"""By verb, the classes whose fields are its flags, and the fields that are not."""
TELLERS: dict[str, Callable[..., str]] = {"check": tell_model, "report": tell_report, "metrics": tell_metrics}
_REPEATED = ("--prompt", "--lora", "--metrics", "--edits")
_SWITCHED = {"true", "false", "null", *typing.get_args(CompileMode)}  # what may follow a switch as its value
_OWN = {"edit": "VIDEO --prompt TEXT --output DIR", "check": "MODEL", "report": "RUN [RUN]", "metrics": "A B"}
_OWN["benchmark"] = "NAME DIR --output DIR"
_POSITIONS = ("video", "model", "run", "reference", "videos", "benchmark", "folder")  # of flags that must be given
_PLACED = {f"--{name}": name for name in _POSITIONS}
_ALIASES = {"--num-inference-steps": ["--steps"], "--accelerator": ["--device"]}


class HelpfulParser(ArgumentParser):
    """A `HelpfulParser` leaves prompts as they are, suggests the nearest known name, and prints recommendations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": LOADER, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake, with the name that was probably meant."""
        super().error(suggest(reveal(message), list_flags(self)), ex)

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return the YAML of a configuration, with the recommendations of its model filled in."""
        return reveal_yaml(super().dump(fill_recommended(hide(namespace.clone())), *args, **kwargs))


class FlagParser(HelpfulParser):
    """A `FlagParser` is a parser whose flags are fields of the options' classes, spelled with dashes."""

    # jsonargparse takes the source of this method over into the class of its groups.
    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Make a flag of a field: dashes, aliases, the video by its position, and help without markup."""
        flags = [name.replace("_", "-") if name.startswith("--") else name for name in names]
        flags += [alias for flag in flags for alias in _ALIASES.get(flag, ())]
        if flags[0] in _PLACED and kwargs.pop("required", False):
            flags = [_PLACED[flags[0]]]
        if flags == ["--against"]:
            flags, kwargs["nargs"] = ["against"], "?"
        if isinstance(kwargs.get("help"), str):
            kwargs["help"] = kwargs["help"].replace("``None``", "null").replace("`", "")
        return typing.cast(argparse.Action, super().add_argument(*flags, **kwargs))


def make_parser(verb: str) -> FlagParser:
    """Make the parser of ``edit``, ``export``, ``demo`` or ``check``."""
    name, own = f"ddim-lightning {verb}", _OWN.get(verb, "--output DIR")
    about: dict[str, Any] = {"prog": name, "usage": f"{name} {own} ...", "description": VERBS[verb]}
    parser = FlagParser(**about, exit_on_error=False, print_config="--print-config")
    parser.add_argument("--config", action="config", help="YAML file of options, by the names of the flags")
    for kind, left_out in _GROUPS[verb].items():
        parser.add_argument_group(kind.__name__.lower()).add_class_arguments(kind, as_group=False, skip=set(left_out))
    return parser


def make_completion(shell: str) -> str:
    """Make the script that completes verbs and flags in a shell that shtab knows."""
    parser = ArgumentParser(prog="ddim-lightning")
    commands = parser.add_subcommands(dest="verb")
    for verb, what in VERBS.items():
        commands.add_subcommand(verb, make_parser(verb) if verb in _GROUPS else ArgumentParser(description=what))
    return parser.get_completion_script(f"shtab-{shell}")


def read_options(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Read what follows a verb into the options' classes, by their names in lower case."""
    switches = {field.name for kind in _GROUPS[verb] for field in fields(kind) if str(field.type).startswith("bool")}
    try:
        values = reveal(make_parser(verb).parse_args(_spell_out(words, switches)).as_dict())
        names = {kind: values.keys() & _all_but(kind) for kind in _GROUPS[verb]}
        return {kind.__name__.lower(): kind(**{name: values[name] for name in names[kind]}) for kind in names}
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    except AttributeError as error:  # of jsonargparse, about a config inside a config
        raise argparse.ArgumentError(None, f"config: must hold options alone, and no config ({error})") from error


def _spell_out(words: Sequence[str], switches: set[str]) -> list[str]:
    """Spell ``--a_b`` with dashes, switches as ``--fast=true`` and ``--fast=false``, flags that repeat as lists."""
    spelled: list[str] = []
    words = hide_words(words)
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        name = flag.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            spelled.append(word)
        elif flag in _REPEATED:
            spelled.append(f"{flag}+{equals}{value}")
        elif name in switches and not equals and following.lower() not in _SWITCHED:
            spelled.append(f"{flag}=true")
        elif name.startswith("no_") and name.removeprefix("no_") in switches:
            spelled.append(f"--{flag.removeprefix('--no-')}=false")
        else:
            spelled.append(f"{flag}{equals}{value}")
    return spelled
