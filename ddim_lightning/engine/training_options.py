"""The options of a training stand together; a field's docstring is its help text everywhere.

Nothing heavy is imported here, so that the command line can say what it takes before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ddim_lightning.engine.parts import describe_part

_PARTS = ("transformer", "text_encoder", "lora")


@dataclass(frozen=True)
class Training:
    """The `Training` says what of the model trains under `Trainer.fit`, toward what, and how.

    Args:
        parts: ``transformer`` or ``lora``, which is low-rank changes of the transformer's weights by peft;
            ``text_encoder``; or one of the first two beside it. Whatever is not named stays frozen and out of
            checkpoints.
        rank: Of the LoRA, >= 1.
        alpha: Of the LoRA, > 0: its changes are scaled by alpha / rank. ``null`` is the rank.
        targets: Linear layers of the transformer that get a LoRA, by the ends of their names.
        objectives: What becomes small, added up by weight: each an `Objective`, a class name of
            `ddim_lightning.diffusion.objectives`, the class path of your own, or ``{class_path, init_args}``.
        caption_dropout: Chance, 0 .. 1, that a caption is replaced by the empty one, which guidance needs.
        gradient_checkpointing: Compute the transformer's blocks a second time in the backward pass instead of keeping
            what they computed: a third more work, a fraction of the memory.
        optimizer: ``adamw``; ``muon``: Muon for the matrices inside the transformer's blocks and AdamW for the rest,
            which learns more from a step; or the dotted path of an optimizer class, such as
            ``bitsandbytes.optim.AdamW8bit``, that takes ``lr``, ``betas`` and ``weight_decay``.
        learning_rate: Peak of the learning rate.
        betas: Moments of AdamW.
        weight_decay: Weight decay of the optimizer.
        warmup_steps: Steps of linear warm-up.

    Raises:
        ValueError: A part that cannot train, an optimizer that is not known, or a number out of range.
    """

    parts: tuple[str, ...] = ("transformer",)
    rank: int = 32
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    objectives: tuple[Any, ...] = ("Velocity",)
    caption_dropout: float = 0.1
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "muon"] | str = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        if not self.parts or set(self.parts) - set(_PARTS):
            raise ValueError(f"training.parts: must be of {', '.join(_PARTS)}, got {self.parts}")
        if {"transformer", "lora"} <= set(self.parts):
            raise ValueError(f"training.parts: must be of transformer and lora only one, got {self.parts}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"training.rank: must be an integer of at least 1, got {self.rank!r}")
        if self.alpha is not None and not 0.0 < self.alpha < math.inf:
            raise ValueError(f"training.alpha: must be > 0 and finite, got {self.alpha}")
        if not self.targets:
            raise ValueError("training.targets: must name at least one layer, got none")
        if not self.objectives:
            raise ValueError("training.objectives: must be at least one, got none")
        # Checkpoints and configs hold them as plain mappings.
        plain = (one if isinstance(one, str | Mapping) else describe_part(one) for one in self.objectives)
        object.__setattr__(self, "objectives", tuple(plain))
        if not 0.0 <= self.caption_dropout <= 1.0:
            raise ValueError(f"training.caption_dropout: must lie in 0 .. 1, got {self.caption_dropout}")
        if self.optimizer not in ("adamw", "muon") and "." not in self.optimizer:
            rule = "must be one of adamw, muon or the dotted path of a class"
            raise ValueError(f"training.optimizer: {rule}, got {self.optimizer!r}")
