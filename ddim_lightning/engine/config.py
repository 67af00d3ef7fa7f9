"""The options of a `DDIMInversionModule` stand in groups; a field's docstring is its help text everywhere.

Nothing heavy is imported here, so that the command line can say what it takes before torch is loaded. A rule that
concerns one group stands in its ``__post_init__``, a rule across groups in `check_options`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar

from ddim_lightning.engine.artifacts import holds_blocks
from ddim_lightning.engine.choices import (
    CompileMode,
    ContextStorage,
    Dtype,
    Forward,
    Kernel,
    Offload,
    Precision,
    check_choice,
)
from ddim_lightning.engine.runtime_options import Runtime
from ddim_lightning.engine.training_options import Training
from ddim_lightning.metrics.measures import OF_FRAMES, Networks, check_measures
from ddim_lightning.models.adapter_card import find_edit_adapter
from ddim_lightning.models.source import Source

__all__ = [
    "CompileMode",
    "ContextStorage",
    "Dtype",
    "Forward",
    "Kernel",
    "Lora",
    "Networks",
    "Offload",
    "Outputs",
    "Precision",
    "Runtime",
    "Schedule",
    "Source",
    "Training",
    "check_guidance_scale",
    "check_options",
    "make_loras",
    "make_options",
]


@dataclass(frozen=True)
class Schedule:
    """The `Schedule` says which noise levels an inversion and an edit pass through.

    Args:
        num_inference_steps: Steps of the inversion and of each way back, 1 .. those of the training (1000). ``None``
            takes what is recommended for an adapter in ``lora`` or for the model.
        timestep_spacing: ``trailing``, even in timesteps, as CogVideoX is published; or ``angle``, even in angles, so
            that every step is the same rotation.
        zero_snr: Whether inversions reach pure noise, the first level of the schedule; without it one step fewer is
            taken.
        fast: Let edits evaluate the network at fewer steps, by a ``step_cache`` of 0.5 unless another is given, and
            take the editor's own form for it, `Editor.fast`. Inversions and reconstructions stay exact.

    Raises:
        ValueError: An option out of its range.
    """

    num_inference_steps: int | None = None
    timestep_spacing: Literal["trailing", "angle"] = "trailing"
    zero_snr: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"num_inference_steps: must be an integer of at least 1, got {steps!r}")
        check_choice("timestep_spacing", self.timestep_spacing, ("trailing", "angle"))


@dataclass(frozen=True)
class Outputs(Networks):
    """The `Outputs` say what a run makes of every clip beside its edits, and as `Networks` where those of measures lie.

    Args:
        reconstruct: Also reconstruct every clip, measure how well, and diagnose the inversion. Without it, and without
            ``save_trajectory``, clips with prompts are inverted only where the editor reads the inversion.
        save_trajectory: Keep the latents of every noise level in the result.
        trajectory_dir: Output folder of a former run with ``save_trajectory``: a clip whose trajectory lies there is
            not inverted again. The trajectory must be of the same clip, model, schedule, inverter and prompt.
        metrics: What is measured of the videos beside PSNR and SSIM, ``lpips`` and ``clip_text`` for example; the names
            are those of the verb ``metrics``. What a measure needs must be on this machine.
        on_error: ``skip`` records a clip that fails and goes on, ``raise`` stops.
        lpips_weights: File of torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1, for ``lpips``;
            ``None`` takes the first of them that torch's own cache holds.

    Raises:
        ValueError: An option out of its range.
    """

    reconstruct: bool = True
    save_trajectory: bool = False
    trajectory_dir: str | None = None
    metrics: Sequence[str] = ()
    on_error: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("skip", "raise"))
        object.__setattr__(self, "metrics", check_measures(self.metrics, OF_FRAMES))


@dataclass(frozen=True)
class Lora:
    """A `Lora` is a low-rank change of the transformer's weights that lies in a file.

    Args:
        file: A safetensors file in the format of diffusers or peft, or the folder that it was saved into. Where a card
            lies beside it that names an editor, it acts in edits alone; see `AdapterCard`.
        scale: How strongly it acts; 1 is as it was trained.

    Raises:
        ValueError: A scale that is not finite.
    """

    file: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"lora: the scale must be finite, got {self.scale}")

    @classmethod
    def make(cls, spec: Lora | Mapping[str, Any] | PathLike[str] | str) -> Lora:
        """Make one of ``FILE``, ``FILE:SCALE``, a path or a mapping of the fields.

        Raises:
            ValueError: Anything else.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, Mapping) and "file" in spec and set(spec) <= {"file", "scale"}:
            return cls(str(spec["file"]), float(spec.get("scale", 1.0)))
        if isinstance(spec, PathLike):
            return cls(fspath(spec))
        if isinstance(spec, str):
            file, colon, text = spec.rpartition(":")
            scale = None
            with suppress(ValueError):
                scale = float(text) if colon and not Path(spec).exists() else None
            return cls(spec) if scale is None else cls(file, scale)
        raise ValueError(f"lora: must be FILE, FILE:SCALE or {{file, scale}}, got {spec!r}")


def make_loras(
    specs: Sequence[Lora | Mapping[str, Any] | PathLike[str] | str] | Lora | Mapping[str, Any] | PathLike[str] | str,
) -> tuple[Lora, ...]:
    """Make LoRAs of what `Lora.make` takes, one or several."""
    return tuple(map(Lora.make, [specs] if isinstance(specs, Lora | Mapping | PathLike | str) else specs))


def check_guidance_scale(scale: float) -> None:
    """Raise a ValueError for a guidance scale that is negative or not finite."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"guidance_scale: must be finite and not negative, got {scale}")


Options = TypeVar("Options", Schedule, Source, Runtime, Outputs, Training)


def make_options(kind: type[Options], value: Options | Mapping[str, Any]) -> Options:
    """Make a group of options from itself or, as checkpoints and configs hold it, from a mapping of its fields.

    Args:
        kind: The group's class.
        value: The group, or its fields by name.

    Raises:
        ValueError: A field that the group does not have, or a value out of its range.
    """
    if isinstance(value, kind):
        return value
    known = tuple(kind.__dataclass_fields__)
    if not isinstance(value, Mapping) or set(value) - set(known):
        group = kind.__name__.lower()
        raise ValueError(f"{group}: must be a {kind.__name__} or a mapping of {', '.join(known)}, got {value!r}")
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in value.items()}
    return kind(**fields)


def check_options(runtime: Runtime, training: Training | None, lora: Sequence[Lora] = ()) -> None:
    """Raise a ValueError where options of different groups do not go with each other."""
    if lora and runtime.exported is not None and not holds_blocks(runtime.exported):
        got = ", ".join(one.file for one in lora)
        raise ValueError(f"lora: artifacts hold weights of their own; must be empty with exported, got {got}")
    if training is None:
        return
    if found := find_edit_adapter([one.file for one in lora]):
        raise ValueError(f"lora: {found.path} acts in edits alone; must be left out with training")
    if runtime.exported is not None:
        raise ValueError(
            f"exported: artifacts cannot be trained; must be unset with training, got {runtime.exported!r}"
        )
    if runtime.offload != "none":
        rule = "weights that train stay on the device; must be none with training"
        raise ValueError(f"offload: {rule}, got {runtime.offload!r}")
    if runtime.ranks_per_clip > 1:
        rule = "a training shares its batches; must be 1 with training"
        raise ValueError(f"ranks_per_clip: {rule}, got {runtime.ranks_per_clip}")
    if runtime.precision != "none":
        raise ValueError(f"precision: 8 bits cannot train; must be none with training, got {runtime.precision!r}")
    if runtime.prompt_cache is not None and "text_encoder" in training.parts:
        rule = "embeddings of a text encoder that trains change; must be unset with training.parts of text_encoder"
        raise ValueError(f"prompt_cache: {rule}, got {runtime.prompt_cache!r}")
