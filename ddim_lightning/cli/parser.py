"""The parsers of `edit`, `export` and `demo`, made by jsonargparse from the options' classes, without torch."""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from ddim_lightning.cli import VERBS
from ddim_lightning.cli.mistakes import suggest
from ddim_lightning.cli.options import Frames, Graphs, Method, Run, Video
from ddim_lightning.engine.config import Outputs, Runtime, Schedule
from ddim_lightning.engine.recommended import read_recommended


def _all_but(kind: type[Any], *names: str) -> set[str]:
    return {field.name for field in fields(kind)} - set(names)


_GROUPS: dict[str, dict[type[Any], set[str]]] = {
    "edit": {kind: set() for kind in (Video, Run, Frames, Method, Schedule, Runtime)} | {Outputs: {"on_error"}},
    "export": {
        Run: set(),
        Graphs: set(),
        Frames: _all_but(Frames, "num_frames", "height", "width"),
        Method: {"inversion_prompt", "seed"},
        Schedule: {"timestep_spacing", "zero_snr"},
        Runtime: _all_but(Runtime, "dtype", "attention", "require_rotary"),
    },
    "demo": {Run: set()},
}
"""By verb, the classes whose fields are its flags, and the fields that are not."""
_ALIASES = {"--num-inference-steps": ["--steps"], "--accelerator": ["--device"]}


class HelpfulParser(ArgumentParser):
    """A parser that suggests the nearest known name, and prints what is recommended in place of null."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake, with the name that was probably meant."""
        super().error(suggest(message, list(_list_flags(self))), ex)

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return the YAML of a configuration, with the recommendations of its model filled in."""
        text: str = super().dump(_fill_recommended(namespace), *args, **kwargs)
        return text


class FlagParser(HelpfulParser):
    """A parser whose flags are fields of the options' classes, spelled with dashes."""

    # jsonargparse takes the source of this method over into the class of its groups.
    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Make a flag of a field: dashes, aliases, the video by its position, and help without markup."""
        flags = [name.replace("_", "-") if name.startswith("--") else name for name in names]
        flags += [alias for flag in flags for alias in _ALIASES.get(flag, ())]
        if flags == ["--video"]:
            flags = ["video"]
            del kwargs["required"]
        if isinstance(kwargs.get("help"), str):
            kwargs["help"] = kwargs["help"].replace("`", "")
        action: argparse.Action = super().add_argument(*flags, **kwargs)
        return action


def make_parser(verb: str) -> FlagParser:
    """Make the parser of ``edit``, ``export`` or ``demo``."""
    own = "VIDEO --prompt TEXT --output DIR" if verb == "edit" else "--output DIR"
    parser = FlagParser(
        prog=f"ddim-lightning {verb}",
        usage=f"ddim-lightning {verb} {own} ...",
        description=VERBS[verb],
        exit_on_error=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", help="YAML file of options, by the names of the flags")
    for kind, left_out in _GROUPS[verb].items():
        group = parser.add_argument_group(kind.__name__.lower())
        group.add_class_arguments(kind, as_group=False, skip=set(left_out))
    return parser


def make_completion(shell: str) -> str:
    """Make the script that completes verbs and flags in a shell that shtab knows."""
    parser = ArgumentParser(prog="ddim-lightning")
    commands = parser.add_subcommands(dest="verb")
    for verb, what in VERBS.items():
        commands.add_subcommand(verb, make_parser(verb) if verb in _GROUPS else ArgumentParser(description=what))
    return parser.get_completion_script(f"shtab-{shell}")


def read_options(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Read what follows a verb into the options' classes, by their names in lower case.

    Raises:
        argparse.ArgumentError: An argument that is not known, is missing, or is out of its range.
    """
    values = make_parser(verb).parse_args(_spell_out(words, _find_switches(verb)))
    try:
        return {kind.__name__.lower(): kind(**_pick(values, kind)) for kind in _GROUPS[verb]}
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error


def _pick(values: Namespace, kind: type[Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _find_switches(verb: str) -> dict[str, set[str]]:
    """Find the flags that may stand without a value, and the values that each may have."""
    hints = {name: hint for kind in _GROUPS[verb] for name, hint in typing.get_type_hints(kind).items()}
    kinds = {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}
    values = {bool: {"true", "false"}, NoneType: {"null"}}
    return {
        "--" + name.replace("_", "-"): set[str]().union(*(values.get(one) or typing.get_args(one) for one in several))
        for name, several in kinds.items()
        if bool in several
    }


def _spell_out(words: Sequence[str], switches: dict[str, set[str]]) -> list[str]:
    """Spell arguments as jsonargparse knows them.

    ``--a_b`` becomes ``--a-b``, a switch ``--fast`` becomes ``--fast=true`` and ``--no-fast`` ``--fast=false``, and
    each ``--prompt`` becomes one more text of a list.
    """
    spelled: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        positive = f"--{flag.removeprefix('--no-')}"
        if not word.startswith("--"):
            if spelled[-1:] == ["--prompt"]:
                spelled[-1] = f"--prompt+={json.dumps([word])}"
            else:
                spelled.append(word)
        elif flag == "--prompt" and equals:
            spelled.append(f"--prompt+={json.dumps([value])}")
        elif flag in switches and not equals and following.lower() not in switches[flag]:
            spelled.append(f"{flag}=true")
        elif flag not in switches and positive in switches:
            spelled.append(f"{positive}=false")
        else:
            spelled.append(f"{flag}{equals}{value}")
    return spelled


def _fill_recommended(namespace: Namespace) -> Namespace:
    """Fill null in the options of `edit`, or of ``predict`` with the module under ``model``."""
    filled = namespace.clone()
    module = filled.get("model")
    options = module.get("init_args") if isinstance(module, Namespace) else filled
    if options and isinstance(options.get("model"), str) and "guidance_scale" in options:
        for name, value in read_recommended(options["model"]).items():
            if name in options and options[name] is None:
                options[name] = value
    return filled


def _list_flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):  # the verbs of Lightning's command line
            for verb in action.choices.values():
                yield from _list_flags(verb)
