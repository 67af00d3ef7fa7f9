"""The verbs ``predict``, ``fit`` and ``validate`` are Lightning's own command line with our parser and defaults."""

from __future__ import annotations

import json
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ddim_lightning.callbacks.progress import ProgressPrinter
from ddim_lightning.cli.options import Run
from ddim_lightning.cli.parser import HelpfulParser
from ddim_lightning.cli.running import DONE, QUIET, tell_results
from ddim_lightning.cli.texts import reveal
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.output.natural import warn_of_natural
from ddim_lightning.report.console import plain_output
from ddim_lightning.runtime.processes import leave_group
from ddim_lightning.writer import VideoWriter, read_results

_TRAIN: dict[str, Any] = {"model_class": LightningModule, "save_config_kwargs": {"overwrite": True}}
_PREDICT: dict[str, Any] = {
    "model_class": DDIMInversionModule,
    "trainer_defaults": {**QUIET, "callbacks": [ProgressPrinter()]},
    "save_config_callback": None,
    "seed_everything_default": False,
}


def run_lightning(verb: str, flags: Sequence[str], *, as_json: bool = False) -> int:
    """Run ``fit``, ``validate`` or ``predict`` as Lightning's command line does, and return the exit status."""
    cli_class, options = (_PredictCLI, _PREDICT) if verb == "predict" else (_TrainCLI, _TRAIN)
    raises = {"exit_on_error": False}  # instead of ending the process with a page of usage
    with plain_output(as_json), leave_group():
        # Lightning fears that arguments given twice differ; here they are those of the process, tidied up.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter|Couldn't infer the batch indices")
        cli = cli_class(
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_Parser,
            parser_kwargs={**raises, **dict.fromkeys(cli_class.verbs, raises)},
            args=[verb, *flags],
            **options,
        )
    if not cli.trainer.is_global_zero:
        return DONE
    if verb == "predict":
        # By its section, since `trainer.callbacks` may list more writers.
        output_dir = cli.config_init[verb]["writer"].output_dir
        status = tell_results(Run(output_dir, json=as_json), read_results(output_dir))
        return DONE if TorchElasticEnvironment.detect() else status  # torchrun ends all where one has another status
    if as_json:
        print(json.dumps({"verb": verb, "metrics": {k: float(v) for k, v in cli.trainer.callback_metrics.items()}}))
    return DONE


class _Parser(HelpfulParser, LightningArgumentParser):
    """Lightning's parser, with suggestions and recommendations."""


class _TrainCLI(LightningCLI):
    """``fit`` and ``validate``, of any module."""

    verbs: tuple[str, ...] = ("fit", "validate")

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Name our verbs, and what of the Trainer's method is not a flag."""
        return {verb: LightningCLI.subcommands()[verb] | {"return_predictions"} for verb in cls.verbs}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse words whose texts are hidden, and put the texts back."""
        super().parse_arguments(parser, args)
        self.config = reveal(self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take our module where none is named."""
        parser.set_defaults({"model": {"class_path": "ddim_lightning.DDIMInversionModule"}})


class _PredictCLI(_TrainCLI):
    """``predict``: results go to a folder, not to memory."""

    verbs = ("predict",)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take our data module where none is named, and ask for the output folder."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"data": {"class_path": "ddim_lightning.VideoDataModule"}})
        parser.add_lightning_class_args(VideoWriter, "writer")

    def before_instantiate_classes(self) -> None:
        """Refuse a seed that would have no effect."""
        if (seed := self.config[self.subcommand].seed_everything) is not False:
            raise ArgumentError(None, f"seed_everything: must be unset, got {seed}; --model.seed seeds every clip")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Say what the model does not know before the Trainer says anything."""
        rank_zero_only(warn_of_natural)(self.model.model, [c.video for c in getattr(self.datamodule, "requests", ())])
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Run the trainer without keeping what the writer writes."""
        self.trainer.predict(**kwargs, return_predictions=False)
