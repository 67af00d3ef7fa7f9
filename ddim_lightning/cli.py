"""The command line: reads arguments, hands over, and says in one line what went wrong.

Neither torch nor lightning is imported here, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import ddim_lightning
from ddim_lightning.resources import get_config_path
from ddim_lightning.runtime.allocator import keep_freed_memory

DONE, FAILED, WRONG_USAGE, SOME_SKIPPED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses; `SOME_SKIPPED` when every clip was tried and some could not be done."""

_DEBUG = "DDIM_LIGHTNING_DEBUG"
_LIGHTNING = {
    "predict": "invert, reconstruct and edit all clips of a data module (YAML files)",
    "fit": "train (YAML files)",
    "validate": "validate (YAML files)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process when ``None``.

    Returns:
        The exit status: 0 when all is done, 3 when some clips were skipped, 2 for arguments that cannot be
        read, 130 when interrupted, 1 for any other failure.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get(_DEBUG, "0") not in {"", "0"}
    try:
        # For classes of one's own: the current folder is where `python -m` looks, and a console script does not.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        if argv is None:  # the process is ours
            keep_freed_memory()
        return _dispatch([word for word in words if word != "--debug"])
    except SystemExit as stop:  # how argparse ends after --help, --print_config and wrong usage
        if isinstance(stop.__context__, KeyboardInterrupt):  # and how Lightning ends after Ctrl-C
            print("error: interrupted", file=sys.stderr)
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_explain(error)}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, argparse.ArgumentError) else FAILED


def _dispatch(words: list[str]) -> int:
    """Hand the arguments to the verb they begin with."""
    args = None
    if words[:1] == ["benchmark"]:
        from ddim_lightning.benchmark_command import benchmark

        return benchmark(words[1:])
    if not words or words[0] not in _LIGHTNING:
        args = make_parser().parse_args([_with_dashes(word) for word in words])
        if args.verb == "env":
            return _print_environment(as_json=args.json)
        if args.verb == "edit":
            _check_edit(args)
        if args.verb == "vitality":
            _check_vitality(args)
    # First the door, which finds out whether torch and torchvision fit, before lightning stumbles over them.
    import ddim_lightning.models  # noqa: F401
    from ddim_lightning import commands

    if args is None:
        flags = _find_configs([_with_underscores(word) for word in words[1:] if word != "--json"])
        return commands.run_lightning(words[0], flags, as_json="--json" in words)
    if args.verb == "vitality":
        from ddim_lightning.vitality_command import vitality

        return vitality(args)
    if args.verb == "export":
        from ddim_lightning.export_command import export

        return export(args)
    return commands.edit(args) if args.verb == "edit" else commands.demo(args)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the verbs that are not Lightning's own; those are only listed."""
    parser = _Parser(
        prog="ddim-lightning",
        description="DDIM inversion and prompted editing of videos with CogVideoX.",
        epilog="exit status: 0 done, 3 some clips were skipped, 2 arguments that cannot be read, 130 interrupted, "
        "1 any other failure. "
        f"{_DEBUG}=1 or --debug shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ddim-lightning {ddim_lightning.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    _add_edit(verbs)
    demo = verbs.add_parser("demo", help="edit clips with known answers by the bundled model", allow_abbrev=False)
    demo.description = "Invert, reconstruct and edit clips of moving shapes, and compare each edit with the truth."
    _add_output(demo)
    _add_vitality(verbs)
    _add_export(verbs)
    env = verbs.add_parser("env", help="print what is installed here, for bug reports", allow_abbrev=False)
    env.add_argument("--json", action="store_true", help="print JSON")
    for verb, what in _LIGHTNING.items():
        verbs.add_parser(verb, help=what, add_help=False)
    verbs.add_parser("benchmark", help="run a benchmark; without a name they are listed", add_help=False)
    return parser


def _add_edit(verbs: Any) -> None:
    edit = verbs.add_parser(
        "edit",
        help="edit one video",
        description="Invert one video, reconstruct it, and rebuild it under each prompt.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    edit.add_argument("video", metavar="VIDEO", help="the file")
    edit.add_argument("--prompt", action="append", required=True, help="what the edit shows; repeat it for more edits")
    _add_output(edit)
    _add_model(edit)
    edit.add_argument("--inverter", type=_read_spec, metavar="CLASS", help=f"the inversion method: {_SPEC}")
    edit.add_argument("--editor", type=_read_spec, metavar="CLASS", help=f"the editing method: {_SPEC}")
    edit.add_argument("--mask", metavar="FILE", help="video or image, white where the edits may change the video")
    inversion = edit.add_argument_group("inversion")
    inversion.add_argument("--timestep-spacing", choices=("trailing", "angle"), default="trailing", help="of the steps")
    text = inversion.add_mutually_exclusive_group()
    text.add_argument("--inversion-prompt", default="", metavar="TEXT", help="what the inversion is told")
    text.add_argument("--invert-under-source", action="store_true", help="tell the inversion the source prompt")
    inversion.add_argument("--save-trajectory", action="store_true", help="keep the latents of every noise level")
    inversion.add_argument(
        "--trajectories", metavar="DIR", help="folder of a former run with --save-trajectory, used again"
    )
    _add_frames(edit)
    run = edit.add_argument_group("run")
    run.add_argument("--seed", type=int, default=0, help="seed of every random number")
    _add_accelerator(run)
    run.add_argument("--dtype", default="auto", help="of the network: auto, float32, bfloat16, ...")
    run.add_argument("--attention", default="auto", help="attention kernel: auto, sdpa, cudnn, flash, ...")
    run.add_argument(
        "--precision", choices=("none", "int8", "fp8"), default="none", help="of the blocks' large products, in edits"
    )
    run.add_argument("--compile", nargs="?", const=True, default=False, metavar="MODE", help="torch.compile the blocks")
    run.add_argument("--compile-vae", action="store_true", help="torch.compile the VAE")
    run.add_argument("--compile-cache", metavar="DIR", help="folder that keeps compiled graphs for other machines")
    run.add_argument("--preset", choices=("exact", "fast"), default="exact", help="fast: edits evaluate fewer steps")
    run.add_argument("--runtime", metavar="DIR", help="artefacts that `export` wrote, instead of the network")
    run.add_argument(
        "--memory",
        choices=("exact", "staged", "low_memory"),
        default="exact",
        help="what stays on the device: all; what works; of the transformer two blocks",
    )
    run.add_argument("--vae-tiling", action="store_true", help="encode and decode in tiles: least memory, seams")
    run.add_argument("--embeddings", metavar="DIR", help="folder that keeps prompt embeddings from run to run")
    run.add_argument("--no-reconstruct", action="store_true", help="leave the reconstruction out")
    run.add_argument("--share-pass", action="store_true", help="make all edits in one network pass a step")


def _check_edit(args: argparse.Namespace) -> None:
    """Refuse what cannot work: a source prompt that is not there, a folder whose trajectory this run would replace."""
    if args.invert_under_source and not args.source_prompt:
        got = repr(args.source_prompt)
        raise argparse.ArgumentError(None, f"argument --invert-under-source: needs a --source-prompt, got {got}")
    if args.trajectories is None or args.save_trajectory:
        return
    if os.path.realpath(args.trajectories) == os.path.realpath(args.output):
        rule = "must not be the folder of --output without --save-trajectory"
        raise argparse.ArgumentError(None, f"argument --trajectories: {rule}, got {args.trajectories!r}")


def _add_vitality(verbs: Any) -> None:
    vitality = verbs.add_parser(
        "vitality",
        help="scan which layers carry the source's structure",
        description="Edit with one layer at a time reading the source, and measure how much closer to the source's "
        "structure each edit gets. Without a VIDEO: on clips of moving shapes, whose edits have a known answer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    vitality.add_argument("video", metavar="VIDEO", nargs="?", help="the file; unset: clips of moving shapes")
    vitality.add_argument(
        "--prompt", action="append", help="what the edit of the VIDEO shows; repeat it for more edits"
    )
    vitality.add_argument("--clips", type=int, help=f"how many clips of moving shapes; unset: {_VITALITY_CLIPS}")
    _add_output(vitality)
    _add_model(vitality)
    _add_frames(vitality)
    _add_accelerator(vitality)


def _add_export(verbs: Any) -> None:
    export = verbs.add_parser(
        "export",
        help="write the network as files that PyTorch alone can run",
        description="Export the network of a model for clips of one size, a graph for each row layout that the "
        "inverter and the editor need. `edit --runtime DIR` and other programs run them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    export.add_argument(
        "--format",
        choices=("aoti", "torch-export", "torchscript"),
        default="aoti",
        help="compiled ahead of time; a graph; or, for compatibility, a trace",
    )
    _add_output(export)
    export.add_argument("--model", default="tiny", help="'tiny' (bundled), a folder, or a hub id")
    export.add_argument("--guidance-scale", type=float, default=2.0, help="of the edits; 1 turns guidance off")
    export.add_argument("--num-inference-steps", "--steps", type=int, default=50, help="steps of each direction")
    export.add_argument("--inverter", type=_read_spec, metavar="CLASS", help=f"the inversion method: {_SPEC}")
    export.add_argument("--editor", type=_read_spec, metavar="CLASS", help=f"the editing method: {_SPEC}")
    export.add_argument("--num-frames", type=int, help="4k + 1; unset: the most that the model takes")
    export.add_argument("--height", type=int, help="pixels; unset: the model's")
    export.add_argument("--width", type=int, help="pixels; unset: the model's")
    export.add_argument("--attention", default="auto", help="the kernel")
    export.add_argument("--dtype", default="auto", help="of the graphs: auto, float32, bfloat16, ...")
    _add_accelerator(export)


_VITALITY_CLIPS = 8
_OF_A_VIDEO = ("prompt", "source_prompt", "negative_prompt", "num_frames", "start", "stride", "height", "width", "fit")


def _check_vitality(args: argparse.Namespace) -> None:
    """Refuse what would be ignored: the settings of a video without one, those of clips of shapes with one."""
    if args.video is not None:
        if args.prompt is None:
            raise argparse.ArgumentError(None, "argument --prompt: must be given with a VIDEO")
        if args.clips is not None:
            raise argparse.ArgumentError(None, f"argument --clips: must not be given with a VIDEO, got {args.clips}")
        return
    unset = make_parser().parse_args(["vitality", "--output", args.output])
    for name in _OF_A_VIDEO:
        if (value := getattr(args, name)) != getattr(unset, name):
            raise argparse.ArgumentError(None, f"argument --{name.replace('_', '-')}: needs a VIDEO, got {value!r}")
    if args.clips is None:
        args.clips = _VITALITY_CLIPS


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="'tiny' (bundled), a folder, or a hub id")
    parser.add_argument("--source-prompt", help="what the video shows")
    parser.add_argument("--negative-prompt", default="", help="what guidance moves away from")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="classifier-free guidance; 1 turns it off")
    parser.add_argument("--num-inference-steps", "--steps", type=int, default=50, help="steps of each direction")


def _add_frames(parser: argparse.ArgumentParser) -> None:
    frames = parser.add_argument_group("frames")
    frames.add_argument("--num-frames", type=int, help="4k + 1; unset: the most that clip and model allow")
    frames.add_argument("--start", type=int, default=0, help="index of the first frame")
    frames.add_argument("--stride", type=_read_stride, default=1, help="every n-th frame, or 'spread' over the clip")
    frames.add_argument("--height", type=int, help="pixels; unset: the model's")
    frames.add_argument("--width", type=int, help="pixels; unset: the model's")
    frames.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop", help="how frames get that size")


def _add_accelerator(parser: Any) -> None:
    parser.add_argument("--accelerator", "--device", default="auto", help="auto, cpu, gpu, cuda or mps")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results; made when not there")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout, and nothing else there")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"error: {message} (see {self.prog} --help)\n")


_SPEC = """a name, a class path, or JSON {"class_path": ..., "init_args": {...}}"""


def _read_spec(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be {_SPEC}, got {text!r}") from error


def _read_stride(text: str) -> float | str:
    try:
        return text if text == "spread" else int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or 'spread', got {text!r}") from error


def _with_dashes(word: str) -> str:
    """``--num_frames=9`` as argparse knows it here: ``--num-frames=9``."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _with_underscores(word: str) -> str:
    """``--data.num-frames=9`` as Lightning knows it: ``--data.num_frames=9``."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _find_configs(words: list[str]) -> list[str]:
    """Replace the name of a shipped config, ``--config edit``, by its path."""
    found = list(words)
    for position, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if flag not in {"--config", "-c"}:
            continue
        if not equals and position + 1 < len(words):
            name = words[position + 1]
        if name and not Path(name).exists() and Path(name).name == name:
            path = str(get_config_path(name.removesuffix(".yaml")))
            found[position if equals else position + 1] = f"{flag}={path}" if equals else path
    return found


def _print_environment(*, as_json: bool) -> int:
    # Straight from the report, not by way of the commands: it must answer where lightning cannot be imported.
    from ddim_lightning.report.environment import read_environment

    report = read_environment()
    if as_json:
        print(json.dumps(report))
        return DONE
    for name, version in report["versions"].items():
        print(f"{name:<16}{version or 'not installed'}")
    print(f"{'platform':<16}{report['platform']}")
    print(f"{'CUDA':<16}{report['cuda'] or 'none'}")
    for gpu in report["gpus"]:
        print(f"{'GPU':<16}{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['compute_capability']}")
    for name, reason in report["broken"].items():
        print(f"{'broken':<16}{name}: {reason}")
    return DONE


_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")


def _explain(error: Exception) -> str:
    """Say in one line what went wrong."""
    # What jsonargparse raises is a tree with the reason somewhere among its leaves.
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line.removeprefix("- ") for line in lines if line and not line.startswith(_NOISE)]
    if any(line.startswith(("Traceback", "Original Traceback")) for line in lines):
        return lines[-1]  # raised in another process, which sends its whole traceback as the message
    message = " ".join(lines)
    expected = isinstance(error, argparse.ArgumentError | ValueError | OSError | ImportError | NotImplementedError)
    if message and (expected or type(error).__name__ == "MisconfigurationException"):
        return message
    return f"{type(error).__name__}: {message} ({_DEBUG}=1 shows where)"
