"""Types are the contract between the floors: a step, a branch of a network call, and the records that travel.

Axes are always ``b f c h w``. Latents are float32, frames are uint8 on their way in and out, angles are float64 radians
(0 is clean, pi/2 is noise). Annotations use jaxtyping and are documentation: nothing checks them at run time, and so
neither it nor torch is imported then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

# Part of the contract, too: whoever wants a record of it finds all of them here.
from ddim_lightning.limits import VideoLimits, count_latent_frames  # noqa: F401

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from torch import Tensor

Latents: TypeAlias = "Float[Tensor, 'b f c h w']"
"""Video latents, scaled by the VAE's ``scaling_factor``; float32 between steps."""
Frames: TypeAlias = "UInt8[Tensor, 'f c h w']"
"""RGB frames of one clip, 0 .. 255."""
Video: TypeAlias = "Float[Tensor, 'b f c h w']"
"""RGB video, 0 .. 1."""
KVScale: TypeAlias = "Float[Tensor, 'layers']"
"""How much a branch attends to the keys and values of its source, 0 .. 1 for each layer; lies on the CPU."""

Context: TypeAlias = tuple[Any, ...]
"""What a model keeps of a branch that it evaluated once, for every window of a long clip; opaque to all others."""

Stage = Literal["encode", "invert", "reconstruct", "edit", "decode"]
Needs = Literal["nothing", "clean", "levels"]
"""What an edit reads of an inversion: at most the shape of its latents, the clean latents too, or all there is."""


@dataclass(frozen=True)
class Step:
    """A `Step` joins noise level ``i`` and the next cleaner level ``i + 1``.

    Args:
        i: Position in the schedule, 0 (next to noise) .. N - 1 (next to clean).
        timestep: Training timestep the network is told, 0 .. 999.
        angle: Angle of level ``i`` in radians.
        angle_next: Angle of level ``i + 1`` in radians; smaller than ``angle``.
    """

    i: int
    timestep: int
    angle: float
    angle_next: float


@dataclass(frozen=True)
class Branch:
    """A `Branch` is one trajectory that is being denoised in a network call.

    Args:
        latents: (b, f, c, h, w) float32, at the level ``step.i``.
        prompt: The text it is denoised under.
        negative_prompt: The text that guidance moves away from.
        guidance_scale: 1 evaluates ``prompt`` alone (1 NFE); anything else ``[negative_prompt, prompt]`` (2 NFE).
        kv_source: Position, in the same call, of the branch whose keys and values this one also attends to.
        needs_velocity: Whether its velocity is needed; a branch that is only a source may stop after its last keys and
            values.
        cache_key: Identifies latents that are made anew for each edit: branches with equal keys, in one call, have
            equal latents.
        image_latents: (b, f, c, h, w), what an image-to-video model is shown beside the latents; ``None`` for a
            text-to-video model.
        timestep: Training timestep the network is told of a branch that is held; ``None`` is that of the step.
        context: What `Denoiser.hold` made of another branch, whose keys and values this one also attends to, in every
            layer.
        mask: (1, f, 1, h, w), beside a ``kv_source``: where it is 0 this branch is that one, in every layer, and is not
            evaluated; its velocity there is 0. ``None`` evaluates all of it.
    """

    latents: Latents
    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    kv_source: int | None = None
    needs_velocity: bool = True
    cache_key: tuple[int, ...] | None = None
    image_latents: Latents | None = None
    timestep: int | None = None
    context: Context | None = None
    mask: Tensor | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts it is evaluated under: one without guidance, ``(negative_prompt, prompt)`` with it."""
        return (self.prompt,) if self.guidance_scale == 1.0 else (self.negative_prompt, self.prompt)


class Denoiser(Protocol):
    """A `Denoiser` is a model as the mathematics sees it: branches in, one guided velocity per branch out."""

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        ...

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Evaluate all branches in one network pass.

        Args:
            branches: The trajectories; see `Branch`.
            step: The step; its ``timestep`` conditions the network.
            kv_scale: Per layer, 0 (attends to nothing of a source) .. 1 (fully); ``None`` when no branch has a source.

        Returns:
            For each branch its float32 velocity, guidance applied, or ``None`` where it is not needed.
        """
        ...

    def hold(self, branch: Branch) -> Context:
        """Evaluate a branch once, under its prompt and at its own timestep, for branches of any step to attend to.

        Args:
            branch: The trajectory; without guidance.

        Returns:
            Its keys and values; they are let go of with it.
        """
        ...


VelocityFn = Callable[[Latents, Step], Latents]
"""The one-branch partial of a `Denoiser`: all that an inverter sees."""

StepCallback = Callable[[Step, Latents], None]
"""Called once after every step with the step and the latents it led to."""


@dataclass(frozen=True)
class EditRequest:
    """An `EditRequest` says what an editor is asked for.

    Args:
        prompt: The text of the edited video.
        negative_prompt: What guidance moves away from.
        source_prompt: A description of the source clip, or ``None`` when there is none.
        guidance_scale: Classifier-free guidance scale, >= 0; 1 turns guidance off.
        mask: (1, f, 1, h, w) float at the latents' size, 1 where the video may change and 0 where the trajectory is
            kept; ``None`` changes everything.
        image_latents: (b, f, c, h, w), what an image-to-video model is shown beside the edited video; ``None`` shows it
            what the inversion was made under.
    """

    prompt: str
    negative_prompt: str = ""
    source_prompt: str | None = None
    guidance_scale: float = 1.0
    mask: Tensor | None = None
    image_latents: Latents | None = None


@dataclass
class FrameSelection:
    """A `FrameSelection` says which frames of a file were taken.

    Not frozen, because it travels inside a `Clip`.

    Args:
        start: Index of the first frame taken.
        stride: Mean distance between frames taken, >= 1; an int where it is a whole number.
        count: Number of frames taken, 4k + 1.
        dropped: Frames at the end of the file that the selection, ``count * stride`` frames long, does not reach.
        cropped: Share of the picture that was cut at its sides, 0 .. 1.
        start_s: When the first frame taken appears, in seconds after the video begins; ``None`` is ``start`` over the
            rate. Selections of the same frames are equal.
    """

    start: int
    stride: float
    count: int
    dropped: int
    cropped: float = 0.0
    start_s: float | None = field(default=None, compare=False)


@dataclass
class Clip:
    """A `Clip` is what `predict_step` works on; any data module may yield it.

    Not frozen, because Lightning rebuilds the dataclasses it finds in a batch.

    Args:
        id: Names the output folder; unique within a run.
        frames: (f, c, h, w) uint8, already at the model's size.
        fps: Frames per second of ``frames``, after the stride.
        prompts: The edits wanted.
        source_prompt: A description of the clip, if there is one.
        negative_prompt: What guidance moves away from.
        seed: The clip's own seed; ``None`` derives it from the module's seed and ``id``.
        selection: Which frames of the file these are; ``None`` for clips that come from no file.
        source: The file, for its audio, or the folder of frames; ``None`` when there is none.
        warnings: Sentences for the result.
        mask: (f, h, w) bool, True where the edits may change the video; ``None`` changes everything.
        mask_source: The file or folder of the mask; ``None`` when there is none.
        first_frame: (c, h, w) uint8 at the size of ``frames``: the first frame of the edits, made elsewhere, that an
            image-to-video model propagates; ``None`` shows it the clip's own.
        first_frame_source: The file of the first frame; ``None`` when there is none.
        latents: (1, f, c, h, w), scaled by the VAE's ``scaling_factor``: ``frames`` encoded already, so that the VAE
            does not encode them.
        source_prompts: One for each of ``prompts``, empty where there is none: descriptions of the clip that edits are
            made under where they are not all under ``source_prompt``. Empty where they are.
        rows: What the table that the clip comes from says of it, JSON-ready: one for each of its rows. It is kept in
            the record, and has no effect.
    """

    id: str
    frames: Frames = field(repr=False)
    fps: Fraction = Fraction(8)
    prompts: tuple[str, ...] = ()
    source_prompt: str | None = None
    negative_prompt: str = ""
    seed: int | None = None
    selection: FrameSelection | None = None
    source: str | None = None
    warnings: tuple[str, ...] = ()
    mask: Bool[Tensor, "f h w"] | None = field(default=None, repr=False)
    mask_source: str | None = None
    first_frame: UInt8[Tensor, "c h w"] | None = field(default=None, repr=False)
    first_frame_source: str | None = None
    latents: Latents | None = field(default=None, repr=False)
    source_prompts: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()


@dataclass
class UnreadableClip:
    """An `UnreadableClip` stands for a clip that could not be read, so that its neighbors are not lost."""

    id: str
    source: str
    reason: str
    prompts: tuple[str, ...] = ()


@dataclass
class Edit:
    """An `Edit` is one edited video: its prompt, its frames (f, c, h, w) uint8, its latents (1, f, c, h, w)."""

    prompt: str
    frames: Frames = field(repr=False)
    latents: Latents = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class ClipResult:
    """A `ClipResult` is what `predict_step` returns and the writer reads.

    Args:
        clip: The clip, or the one that could not be read.
        status: ``done``; ``skipped``; or ``finished``, where an earlier run did it and its files are there.
        reason: Why it was skipped; ``None`` otherwise.
        seed: The seed every random number of this clip came from.
        vae_round_trip: The source through the VAE alone, the ceiling of every reconstruction; (f, c, h, w) uint8.
        reconstruction: (f, c, h, w) uint8, or ``None`` when not asked for.
        edits: One per prompt, in order.
        trajectory: `Inversion.to_dict()` on the CPU when it is to be saved, else ``None``.
        fingerprint: What the result depends on; a later run finds by it what is finished.
        metrics: ``{"vae": {"psnr": dB, "ssim": ..}, "reconstruction": {"psnr": .., "psnr_vs_vae": .., ..}}``.
        diagnosis: What the inversion looks like, and what is off; JSON-ready (see `metrics.diagnosis`). Empty where
            none was made.
        seconds: Wall time by stage.
        nfe: Number of function evaluations by stage: latents under one embedding through the transformer; each window
            of a long clip counts.
        windows: How a clip longer than the model takes at once was covered: ``count`` windows of ``frames`` latent
            frames, which share at least ``overlap``; empty where it was taken at once.
        peak_gib: Peak device memory by stage; empty on a CPU.
        settings: The module's settings, JSON-ready.
        warnings: Sentences for the user.
    """

    clip: Clip | UnreadableClip
    status: Literal["done", "skipped", "finished"]
    reason: str | None = None
    seed: int = 0
    vae_round_trip: Frames | None = None
    reconstruction: Frames | None = None
    edits: list[Edit] = field(default_factory=list)
    trajectory: dict[str, Tensor] | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    nfe: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """Say in one line what became of which clip; `ddim_lightning.show` shows all of it."""
        facts = [self.status if self.reason is None else f"{self.status}: {self.reason!r}"]
        facts += [f"{len(self.edits)} edits"] if self.edits else []
        facts += [f"{sum(self.nfe.values())} NFE"] if self.nfe else []
        return f"ClipResult({self.clip.id!r}, {', '.join(facts)})"


FindResult = Callable[[Clip, Mapping[str, str]], bool]
"""Says whether a result of this clip with this fingerprint is there; raises where none of it could be put there."""


@dataclass(frozen=True)
class Progress:
    """A `Progress` is one tick of long work: which clip, which stage, and how many steps of it are done.

    Args:
        clip_id: The clip.
        stage: What is being done to it.
        label: The stage as a person reads it, ``edit 1/2`` for example.
        done: Steps of the stage done, 0 when it starts.
        total: Steps of the stage.
        nfe: Function evaluations of a step of this stage on average, 0 for stages without the network.
        nfe_left: Function evaluations of the clip that come after this stage, from which time left is estimated.
        windows: Windows that the network passes through in every step of this stage; 1 for a clip that it takes at
            once, and for stages without the network.
    """

    clip_id: str
    stage: Stage
    label: str
    done: int
    total: int
    nfe: float
    nfe_left: int
    windows: int = 1
