"""The bodies of the verbs: each runs `Trainer.predict`, or hands over to Lightning's own command line."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ddim_lightning.callbacks import ProgressPrinter
from ddim_lightning.data.shapes import WORDS, Scene, render
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.report.tables import make_means, print_edits, print_paths, print_results
from ddim_lightning.running import make_video_data, plain_warnings, predict, stdout_for_json
from ddim_lightning.shapes_datamodule import ShapesDataModule
from ddim_lightning.writer import RESULTS, VideoWriter, make_output_dir, read_results

_DONE, _SOME_SKIPPED = 0, 3
_DEMO_CLIPS, _DEMO_EDITS, _DEMO_STEPS = 8, ("colour", "shape"), 20


def edit(args: argparse.Namespace) -> int:
    """Invert, reconstruct and edit one video.

    Args:
        args: What `cli.make_parser` reads for ``edit``.

    Returns:
        The exit status.

    Raises:
        ValueError: The file is no video or too short, the mask or the trajectory does not fit it, a prompt is blank, or
            an argument is out of its range.
        OSError: The video, the mask or the trajectory cannot be read, or the output folder not be written to.
    """
    module = DDIMInversionModule(
        args.model,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        inverter=args.inverter,
        editor=args.editor,
        inversion_prompt=None if args.invert_under_source else args.inversion_prompt,
        timestep_spacing=args.timestep_spacing,
        reconstruct=not args.no_reconstruct,
        save_trajectory=args.save_trajectory,
        trajectories=args.trajectories,
        share_pass=args.share_pass,
        attention=args.attention,
        dtype=args.dtype,
        precision=args.precision,
        compile=args.compile,
        compile_vae=args.compile_vae,
        compile_cache=args.compile_cache,
        preset=args.preset,
        runtime=args.runtime,
        memory=args.memory,
        vae_tiling=args.vae_tiling,
        embeddings=args.embeddings,
        on_error="raise",
        seed=args.seed,
    )
    data = make_video_data(args, module, args.mask)
    if args.trajectories is not None:
        _check_trajectory(Path(args.trajectories, data.requests[0].id))
    records = _predict(module, data, args.output, accelerator=args.accelerator, quiet=args.quiet, as_json=args.json)
    return _finish(args.output, records, as_json=args.json, quiet=args.quiet)


def demo(args: argparse.Namespace) -> int:
    """Edit clips of moving shapes, whose edits have a known answer, with the bundled model.

    Args:
        args: What `cli.make_parser` reads for ``demo``.

    Returns:
        The exit status.

    Raises:
        OSError: The output folder cannot be written to.
    """
    module = DDIMInversionModule("tiny", num_inference_steps=_DEMO_STEPS, on_error="raise")
    data = ShapesDataModule(predict_clips=_DEMO_CLIPS, edits=_DEMO_EDITS)
    truth = _TruthTable(data.predict_scenes())
    records = _predict(module, data, args.output, quiet=args.quiet, as_json=args.json, callbacks=[truth])
    return _finish(args.output, records, as_json=args.json, quiet=args.quiet, truth=truth)


def run_lightning(verb: str, flags: Sequence[str], *, as_json: bool = False) -> int:
    """Run ``fit``, `validate` or ``predict`` as Lightning's command line does.

    Args:
        verb: One of the three.
        flags: The arguments after the verb.
        as_json: Print JSON on stdout, and nothing else there.

    Returns:
        The exit status.

    Raises:
        argparse.ArgumentError: The arguments or a YAML file have an unknown key or a value of the wrong type.
    """
    with plain_warnings():
        # Lightning fears that arguments given twice differ; here they are those of the process, tidied up.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
        with stdout_for_json(as_json):
            cli = (_PredictCLI if verb == "predict" else _TrainCLI)(args=[verb, *flags])
    if not cli.trainer.is_global_zero:
        return _DONE
    if verb == "predict":
        # By its section, since `trainer.callbacks` may list more writers.
        output_dir = cli.config_init[verb]["writer"].output_dir
        return _finish(output_dir, read_results(output_dir), as_json=as_json)
    if as_json:
        numbers = {name: float(number) for name, number in cli.trainer.callback_metrics.items()}
        print(json.dumps({"verb": verb, "metrics": numbers}))
    return _DONE


class _TrainCLI(LightningCLI):
    """``fit`` and ``validate``; wrong arguments raise instead of ending the process with a page of usage."""

    verbs: tuple[str, ...] = ("fit", "validate")

    def __init__(self, args: list[str], **kwargs: Any) -> None:
        quiet = {"exit_on_error": False}
        super().__init__(
            kwargs.pop("model_class", LightningModule),
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={**quiet, **dict.fromkeys(self.verbs, quiet)},
            save_config_kwargs={"overwrite": True},
            args=args,
            **kwargs,
        )

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Name our verbs, and what of the Trainer's method is not a flag."""
        return {verb: LightningCLI.subcommands()[verb] | {"return_predictions"} for verb in cls.verbs}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take our module where none is named."""
        parser.set_defaults({"model": {"class_path": "ddim_lightning.DDIMInversionModule"}})


class _PredictCLI(_TrainCLI):
    """``predict``: results go to a folder, not to memory."""

    verbs = ("predict",)

    def __init__(self, args: list[str]) -> None:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
        super().__init__(
            args,
            model_class=DDIMInversionModule,
            trainer_defaults={**quiet, "callbacks": [ProgressPrinter()]},
            save_config_callback=None,
            seed_everything_default=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take our data module where none is named, and ask for the output folder."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"data": {"class_path": "ddim_lightning.VideoDataModule"}})
        parser.add_lightning_class_args(VideoWriter, "writer")

    def predict(self, **kwargs: Any) -> None:
        """Run the trainer without keeping what the writer writes."""
        self.trainer.predict(**kwargs, return_predictions=False)


def _predict(
    module: DDIMInversionModule,
    data: LightningDataModule,
    output_dir: str,
    *,
    accelerator: str = "auto",
    quiet: bool,
    as_json: bool,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Run the job and write its results; the records of all clips."""
    make_output_dir(output_dir)
    writer = VideoWriter(output_dir)
    predict(module, data, accelerator=accelerator, quiet=quiet, as_json=as_json, callbacks=[writer, *callbacks])
    return read_results(output_dir)


def _check_trajectory(folder: Path) -> None:
    """Find out that a former run has no trajectory of a clip; many clips may mix, but the only one was meant."""
    if not (folder / "trajectory.safetensors").is_file():
        raise FileNotFoundError(f"trajectories: {folder} must hold the trajectory of a run with --save-trajectory")


class _TruthTable(Callback):
    """Compares each edit of a rendered scene with the rendering of the edited scene.

    Args:
        scenes: The scene behind every clip and behind each of its prompts, in order.
    """

    def __init__(self, scenes: Sequence[tuple[Scene, Sequence[Scene]]]) -> None:
        self.scenes = scenes
        self.rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the edits of one clip."""
        source, wanted = self.scenes[batch_idx]
        for edited, scene in zip(outputs.edits, wanted, strict=True):
            truth = render(scene) / 255
            changes = {name: (getattr(source, name), getattr(scene, name)) for name in WORDS}
            self.rows.append(
                {
                    "clip": outputs.clip.id,
                    "change": ", ".join(f"{old} to {new}" for old, new in changes.values() if old != new),
                    "vae": outputs.metrics["vae"]["psnr"],
                    "reconstruction": outputs.metrics["reconstruction"]["psnr"],
                    "edit": psnr(edited.frames / 255, truth),
                    "do_nothing": psnr(outputs.clip.frames / 255, truth),
                }
            )


def _finish(
    output_dir: str,
    records: Sequence[Mapping[str, Any]],
    *,
    as_json: bool,
    quiet: bool = False,
    truth: _TruthTable | None = None,
) -> int:
    """Tell what became of the clips; the exit status."""
    for record in records:
        for sentence in record["warnings"]:
            print(f"warning: {record['id']}: {sentence}", file=sys.stderr)
    skipped = [record for record in records if record["status"] == "skipped"]
    listed = Path(output_dir, RESULTS)
    if as_json:
        report = {
            "done": len(records) - len(skipped),
            "skipped": len(skipped),
            "results": str(listed),
            "clips": records,
        }
        if truth is not None:
            report |= {"edits": truth.rows, "means": make_means(truth.rows)}
        print(json.dumps(report, ensure_ascii=False))
    elif not quiet:
        done = [record for record in records if record["status"] == "done"]
        if truth is None:
            print_results(done)
        else:
            print_edits(truth.rows)
        print_paths(output_dir, done)
    for record in skipped:
        print(f"skipped: {record['id']}: {record['reason']}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} of {len(records)} clips were skipped, see {listed}", file=sys.stderr)
    return _SOME_SKIPPED if skipped else _DONE
