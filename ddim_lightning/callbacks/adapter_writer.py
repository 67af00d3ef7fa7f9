"""A callback writes the adapter that a training has made, as a file that others load."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ddim_lightning.models.adapter_file import digest_base, write_adapter_of_checkpoint
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.runtime.sharding import gather


class AdapterWriter(Callback):
    """An `AdapterWriter` writes the LoRA that trained at the end of a fit, with a card that says how it is used.

    It takes the best checkpoint where a `ModelCheckpoint` monitors something, else the weights as they are. Trained
    with an objective that reads sources, it is an adapter for the module's editor, steps and guidance scale.

    Args:
        file: The safetensors file; the card lies beside it as JSON. Files of the same names are replaced.
        dtype: Of the weights in the file.

    Raises:
        ValueError: Another suffix, another dtype, or a module that trains no LoRA.
    """

    def __init__(self, file: str | PathLike[str], dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
        self.file, self.dtype = Path(file), dtype
        if self.file.suffix != ".safetensors":
            raise ValueError(f"file: must end in .safetensors, got {str(file)!r}")
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype: must be float32, float16 or bfloat16, got {dtype!r}")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that trains no LoRA, before it trains."""
        options = pl_module.training_options if isinstance(pl_module, DDIMInversionModule) else None
        parts = () if options is None else options.parts
        if stage == "fit" and "lora" not in parts:
            raise ValueError(f"callbacks: AdapterWriter needs training.parts of lora, got {parts or None}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file on the first process."""
        assert isinstance(pl_module, DDIMInversionModule)
        # Where weights are spread over processes, all of them have to ask.
        base = digest_base(pl_module.transformer)
        weights: dict[str, Any] = {name: gather(weight) for name, weight in pl_module.state_dict().items()}
        if not trainer.is_global_zero:
            return
        best = find_best(trainer)
        if best is not None:
            weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name: weight.to(getattr(torch, self.dtype)) for name, weight in weights.items()}
        edits = any(objective.reads_sources for objective in pl_module.objectives)
        checkpoint = {"hyper_parameters": dict(pl_module.hparams), "state_dict": weights}
        write_adapter_of_checkpoint(self.file, checkpoint, base, edits=edits)
        rank_zero_info(f"Wrote {self.file}, the weights of {'the last step' if best is None else best}")


def find_best(trainer: Trainer) -> Path | None:
    """Return the best checkpoint that is kept by what is monitored; ``None`` without one, or one in many files."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and Path(callback.best_model_path).is_file():
            return Path(callback.best_model_path)
    return None
