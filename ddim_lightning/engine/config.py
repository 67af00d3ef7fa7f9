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
from typing import Any, Literal, TypeVar, get_args

from ddim_lightning.engine.training_options import Training
from ddim_lightning.models.adapter_card import find_edit_adapter
from ddim_lightning.models.source import Source

__all__ = [
    "ContextStorage",
    "Dtype",
    "Forward",
    "Kernel",
    "Lora",
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

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Offload = Literal["none", "model", "blocks"]
Precision = Literal["none", "fp8"]
Kernel = Literal["auto", "sdpa", "cudnn", "flash", "flash3", "flash4", "efficient", "xformers"]
Forward = Literal["fused", "diffusers"]
ContextStorage = Literal["device", "host", "fp8"]
RanksSplit = Literal["rows", "tokens"]
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]

_FUSED_ALONE = (("precision", "none"), ("exported", None), ("offload", "none"), ("rows_per_pass", None))
"""Options that diffusers' forward pass does not honor, and how they are off."""
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` that are refused: they capture CUDA graphs."""


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
        fast: Let edits evaluate the network at fewer steps and carry on what it found to the steps between: by
            `Editor.fast`, or by a ``step_cache`` of 0.3 for an editor that has no such form. Inversions and
            reconstructions stay exact.

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
        _check_choice("timestep_spacing", self.timestep_spacing, ("trailing", "angle"))


@dataclass(frozen=True)
class Runtime:
    """The `Runtime` says how the model runs: in which precision, with which kernels, with what in device memory.

    Args:
        dtype: Dtype of all weights: ``auto`` is that of the Trainer's precision where it is another than 32-true, else
            bfloat16 on an accelerator and float32 on a CPU.
        forward: Forward pass of the transformer: ``fused`` is ours over its weights, the fast one; ``diffusers`` runs
            its own blocks, in which hooks, caches, attention processors, group offload, and quantized or sharded
            weights act.
        attention: Attention kernel: ``auto`` measures those of a GPU once for each shape, ``sdpa``, ``cudnn``,
            ``flash``, ``flash3``, ``flash4``, ``efficient`` and ``xformers`` name one, and so does the dotted path of a
            function of your own.
        precision: Precision of the large products in the transformer's blocks while edits are made: ``none`` is the
            dtype's; ``fp8`` is 8 bits for weights and activations, on a CUDA device of compute capability 8.9 or more.
            The exact weights stay in memory beside those in 8 bits.
        quantize_inversion: Make inversions and reconstructions in that precision, too.
        compile: Compile the transformer's blocks: true, or a mode of `torch.compile` without CUDA graphs.
        compile_vae: Compile the VAE, too; worth it for many clips of one size.
        compile_cache: Folder that keeps compiled graphs, so that another machine of the same kind starts warm. Its
            files hold code that will run, so a folder or a file that others can write to is refused.
        channels_last: Store the VAE's convolution weights with their channels last.
        exported: Folder that ``ddim-lightning export`` wrote: its artifacts stand in for the network. They must be of
            the same model, dtype and size, and hold the row layouts of this editor and guidance.
        offload: What waits in host memory: ``none`` of the model; ``model``, the VAE or the transformer, whichever does
            not work; ``blocks``, also all but two blocks of the transformer. Results are the same bytes.
        context: Where the keys and values of a source wait that all steps of an edit attend to (`InContextEdit`):
            ``device``; ``host``, from where they come layer by layer, the same bytes; or ``fp8``, on the device in 8
            bits, no longer exact.
        vae_tiling: Encode and decode overlapping tiles of the frame, one at a time: least memory, but two fifths more
            work and blended seams.
        prompt_cache: Folder that keeps prompt embeddings from run to run; under known prompts no text encoder is
            loaded. Any number of models share a folder.
        batch_prompts: Make all edits of a clip in one network pass a step, with the source evaluated once. Results then
            depend, within rounding, on how many prompts a clip has.
        ranks_per_clip: Processes that work on one clip together, >= 1, a divisor of the run's processes. Each has the
            whole model and evaluates its share of a pass. Results are those of one process within rounding.
        ranks_split: What they share: ``rows`` of a pass, as guidance and editors make them; or with
            ``forward="diffusers"`` ``tokens`` of each row, also of one alone.
        rows_per_pass: Most rows of a pass that go through each block together, 1 or more: source, edit and guidance are
            rows. Only the tokens of all rows stay, and the numbers are the same within rounding. ``None`` takes all,
            and on a GPU without room for them as many as fit.
        window_overlap: Share of a window, 0 .. 1, over which it is blended with the next one, for clips longer than the
            model takes at once. One latent frame more leads the later window in. The more, the more windows it takes.
        step_cache: Threshold of a step cache for edits, by TeaCache's rule: they evaluate the network where what it is
            told of the timestep has changed by so much, relative L1, since the last evaluation. The steps between take
            velocities on the line through the last two, an approximation. 0 evaluates every step, as null does.
        require_rotary: Refuse models without rotary position embeddings (CogVideoX-2B).

    Raises:
        ValueError: An option out of its range, or beside one that it does not go with.
    """

    dtype: Dtype = "auto"
    forward: Forward = "fused"
    attention: str = "auto"
    precision: Precision = "none"
    quantize_inversion: bool = False
    compile: bool | CompileMode = False
    compile_vae: bool = False
    compile_cache: str | None = None
    channels_last: bool = False
    exported: str | None = None
    offload: Offload = "none"
    context: ContextStorage = "device"
    vae_tiling: bool = False
    prompt_cache: str | None = None
    batch_prompts: bool = False
    ranks_per_clip: int = 1
    ranks_split: RanksSplit = "rows"
    rows_per_pass: int | None = None
    window_overlap: float = 0.25
    step_cache: float | None = None
    require_rotary: bool = True

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, get_args(Dtype))
        _check_choice("forward", self.forward, get_args(Forward))
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("offload", self.offload, get_args(Offload))
        _check_choice("context", self.context, get_args(ContextStorage))
        _check_choice("ranks_split", self.ranks_split, get_args(RanksSplit))
        if self.attention not in get_args(Kernel) and "." not in str(self.attention):
            known = ", ".join(get_args(Kernel))
            raise ValueError(f"attention: must be {known} or the dotted path of a function, got {self.attention!r}")
        modes = get_args(CompileMode)
        if self.compile in _CUDA_GRAPHS:
            # The output of a block is the input of the next, which the next call of the same graph overwrites.
            rule = f"CUDA graphs reuse the memory of what a block returns; must be true or one of {', '.join(modes)}"
            raise ValueError(f"compile: {rule}, got {self.compile!r}")
        if not isinstance(self.compile, bool) and self.compile not in modes:
            raise ValueError(f"compile: must be true, false or one of {', '.join(modes)}, got {self.compile!r}")
        rows = self.rows_per_pass
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise ValueError(f"rows_per_pass: must be an integer of at least 1 or null, got {rows!r}")
        if not 0.0 <= self.window_overlap <= 1.0:
            raise ValueError(f"window_overlap: must lie in 0 .. 1, got {self.window_overlap}")
        if self.step_cache is not None and not 0.0 <= self.step_cache < math.inf:
            raise ValueError(f"step_cache: must be finite and not negative, or null, got {self.step_cache}")
        for name in ("prompt_cache", "compile_cache"):
            folder = getattr(self, name)
            if folder is not None and Path(folder).expanduser().is_file():
                raise ValueError(f"{name}: must be a folder, got the file {folder!r}")
        self._check_ranks()
        self._check_together()

    @property
    def requires(self) -> dict[str, Any]:
        """What a model must have, by the arguments of `read_checkpoint`."""
        return {"require_rotary": self.require_rotary, "require_text": self.prompt_cache is None}

    def _check_ranks(self) -> None:
        ranks = self.ranks_per_clip
        if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
            raise ValueError(f"ranks_per_clip: must be an integer of at least 1, got {ranks!r}")
        if self.ranks_split == "tokens" and (self.forward != "diffusers" or self.compile or self.ranks_per_clip == 1):
            rule = "must be rows without forward='diffusers', with compile, and for a ranks_per_clip of 1"
            raise ValueError(f"ranks_split: {rule}, got 'tokens'")

    def _check_together(self) -> None:
        if self.compile_cache is not None and not (self.compile or self.compile_vae):
            rule = "there is nothing to keep; must be unset without compile or compile_vae"
            raise ValueError(f"compile_cache: {rule}, got {self.compile_cache!r}")
        if self.quantize_inversion and self.precision == "none":
            raise ValueError("quantize_inversion: must be false with a precision of none, got True")
        if self.attention == "xformers" and self.compile and self.forward == "fused":
            raise ValueError(f"compile: xformers cannot be part of a graph; must be false with it, got {self.compile}")
        if self.forward == "diffusers":
            for name, off in _FUSED_ALONE:
                if (got := getattr(self, name)) != off:
                    raise ValueError(f"{name}: must be {off or 'unset'} with forward='diffusers', got {got!r}")
        if self.precision != "none" and self.offload != "none":
            rule = "weights in 8 bits stay on the device; must be none with precision"
            raise ValueError(f"offload: {rule}, got {self.offload!r}")
        if self.exported is not None:
            self._check_exported()

    def _check_exported(self) -> None:
        if self.compile:
            rule = "artifacts cannot be compiled; must be unset with compile"
            raise ValueError(f"exported: {rule}, got {self.exported!r}")
        for name, off, why in (
            ("ranks_per_clip", 1, "artifacts hold whole passes alone"),
            ("rows_per_pass", None, "artifacts take all rows at once"),
            ("precision", "none", "artifacts keep their own"),
            ("offload", "none", "artifacts hold weights of their own"),
        ):
            if (got := getattr(self, name)) != off:
                must = "null" if off is None else off
                raise ValueError(f"{name}: {why}; must be {must} with exported, got {got!r}")


@dataclass(frozen=True)
class Outputs:
    """The `Outputs` say what a run makes of every clip beside its edits.

    Args:
        reconstruct: Also reconstruct every clip, measure how well, and diagnose the inversion. Without it, and without
            ``save_trajectory``, clips with prompts are inverted only where the editor reads the inversion.
        save_trajectory: Keep the latents of every noise level in the result.
        trajectory_dir: Output folder of a former run with ``save_trajectory``: a clip whose trajectory lies there is
            not inverted again. The trajectory must be of the same clip, model, schedule, inverter and prompt.
        on_error: ``skip`` records a clip that fails and goes on, ``raise`` stops.

    Raises:
        ValueError: An option out of its range.
    """

    reconstruct: bool = True
    save_trajectory: bool = False
    trajectory_dir: str | None = None
    on_error: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        _check_choice("on_error", self.on_error, ("skip", "raise"))


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
    if lora and runtime.exported is not None:
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


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {value!r}")
