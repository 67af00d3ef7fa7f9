"""The options of the runtime stand together; a field's docstring is its help text everywhere.

Nothing heavy is imported here, so that the command line can say what it takes before torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ddim_lightning.engine.artifacts import holds_blocks
from ddim_lightning.engine.choices import (
    CompileMode,
    ContextStorage,
    Dtype,
    Forward,
    Kernel,
    Offload,
    Precision,
    RanksSplit,
    check_choice,
)

_FUSED_ALONE = (("precision", "none"), ("exported", None), ("offload", "none"), ("rows_per_pass", None))
"""Options that diffusers' forward pass does not honor, and how they are off."""
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` that are refused: they capture CUDA graphs."""


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
        exported: Folder that ``ddim-lightning export`` wrote: its artifacts stand in for the network, or for its
            blocks. They must be of the same model, dtype and size, and hold the row layouts of this editor and
            guidance.
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
        check_choice("dtype", self.dtype, get_args(Dtype))
        check_choice("forward", self.forward, get_args(Forward))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("offload", self.offload, get_args(Offload))
        check_choice("context", self.context, get_args(ContextStorage))
        check_choice("ranks_split", self.ranks_split, get_args(RanksSplit))
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
        rules: list[tuple[str, Any, str]] = [
            ("ranks_per_clip", 1, "artifacts hold whole passes alone"),
            ("precision", "none", "artifacts keep their own"),
        ]
        if not holds_blocks(self.exported):
            rules += [
                ("rows_per_pass", None, "artifacts take all rows at once"),
                ("offload", "none", "artifacts hold weights of their own"),
            ]
        for name, off, why in rules:
            if (got := getattr(self, name)) != off:
                must = "null" if off is None else off
                raise ValueError(f"{name}: {why}; must be {must} with exported, got {got!r}")
