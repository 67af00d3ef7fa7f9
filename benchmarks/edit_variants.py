"""The ways to edit that `edit_quality` compares are listed by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, Editor, FlowEdit, InContextEdit, KVInjection
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, Inverter, UniInv
from ddim_lightning.engine.fast import make_fast
from ddim_lightning.models.source import BUNDLED_ADAPTER, find_lora

from .loading import EDITOR, GUIDANCE_SCALE, INVERTER

ADAPTER_FILE = find_lora(BUNDLED_ADAPTER)
"""The bundled adapter."""
SEEDS = 3
"""Repetitions of what draws noise."""


@dataclass(frozen=True)
class Variant:
    """A `Variant` is a way to edit: how the clip was inverted, and how the prompt meets that.

    Args:
        inverter: ``None`` where the editor uses nothing of an inversion but the clean latents: it then costs nothing.
        editor: The editor.
        invert_under_source: Whether the inversion's prompt is the source's caption instead of the empty prompt.
        source_prompt: Whether the request brings the source's caption as its source prompt.
        tell_mask: Whether the request brings the true mask of both objects: no method, but what a perfect mask gives.
        from_truth: Whether the clip that is noised is the truth itself: no method, but what is left of it at a level.
        guidance: The scales it is measured at; ``None`` for those of the command line.
        seeds: How often it is repeated under other seeds; more than 1 where noise is drawn.
        adapter: Whether the bundled adapter acts.
        own_steps: Of its own schedule; ``None`` for those of the command line.
        step_cache: Threshold of a step cache; ``None`` for none.
    """

    inverter: Inverter | None
    editor: Editor
    invert_under_source: bool = False
    source_prompt: bool = True
    tell_mask: bool = False
    from_truth: bool = False
    guidance: tuple[float, ...] | None = None
    seeds: int = 1
    # Not in the digests of variants without an adapter, of which there are records.
    adapter: bool = field(default=False, repr=False)
    own_steps: int | None = field(default=None, repr=False)
    # Nor in those of variants without a step cache.
    step_cache: float | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """A name of all its settings: records of other settings under the same name are not mistaken for it."""
        # An option that came after the records is none of their settings where it is off.
        settings = repr(self).replace(", outside='edit'", "").encode()
        if self.adapter:
            settings += f" {self.own_steps} ".encode() + ADAPTER_FILE.read_bytes()
        if self.step_cache is not None:
            settings += f" step_cache={self.step_cache}".encode()
        return hashlib.blake2s(settings, digest_size=4).hexdigest()

    def make_inversion_key(self, seed: int) -> tuple[Inverter | None, bool, int]:
        """Return what tells its inversion from those of other variants and seeds; equal keys share one inversion."""
        return self.inverter, self.invert_under_source, seed if isinstance(self.inverter, EditFriendly) else 0

    def make_fast(self) -> Variant:
        """Return what `Schedule.fast` makes of it."""
        editor, step_cache = make_fast(self.editor, self.step_cache)
        return replace(self, editor=editor, step_cache=step_cache)


CEILING, NOTHING = "ceiling", "do nothing"
"""Rows without a method: the truth, and the source, through the VAE."""
NO_INVERSION, REFERENCE, DEFAULT, INJECTION = "no inversion", "reference", "default", "KVInjection"
FAST = "default, fast"
DEFAULT_GUIDANCE = GUIDANCE_SCALE
"""The scale that is recommended for the tiny model."""

FLOW_EDIT = cast(FlowEdit, EDITOR)
DEEP = UniInv(first_step_iterations=5, extrapolate=True)
"""For what starts at x_T: its deviation is about 1, as that of noise; the recommended inverter leaves half of it."""

METHODS = {
    # What there is to compare with. The script inverts under the empty prompt, starts from noise, tells its source rows
    # the edit prompt and guides by 6, constantly.
    NO_INVERSION: Variant(None, Denoise(initial="random"), guidance=(3.0, 6.0), seeds=SEEDS),
    REFERENCE: Variant(
        DDIM(),
        KVInjection(source_rows="paired", initial="random"),
        source_prompt=False,
        guidance=(6.0,),
        seeds=SEEDS,
    ),
    DEFAULT: Variant(INVERTER, EDITOR, guidance=(1.0, DEFAULT_GUIDANCE, 3.0, 6.0), seeds=SEEDS),
    FAST: Variant(INVERTER, EDITOR, guidance=(DEFAULT_GUIDANCE,), seeds=SEEDS).make_fast(),
    "four noises": Variant(
        INVERTER, replace(FLOW_EDIT, num_noise_samples=4), guidance=(DEFAULT_GUIDANCE,), seeds=SEEDS
    ),
    "plain inversion": Variant(DEEP, Denoise()),
    "DirectInversion": Variant(DEEP, DirectInversion()),
    "DirectInversion + K/V": Variant(DEEP, DirectInversion(kv_scale=1.0)),
    INJECTION: Variant(DEEP, KVInjection()),
    "KVInjection fast": Variant(DEEP, KVInjection()).make_fast(),
    "EditFriendly": Variant(EditFriendly(), Denoise(first_step=18), seeds=SEEDS),
}
"""Every editor that needs no training, and what there is to compare with."""


def _edit_in_context(steps: int, identity_residual: float, *guidance: float) -> Variant:
    editor = InContextEdit(identity_residual=identity_residual)
    return Variant(None, editor, guidance=guidance, seeds=SEEDS, adapter=True, own_steps=steps)


IN_CONTEXT, IN_CONTEXT_GUIDANCE = "in context", 1.5
"""The bundled adapter as it is recommended."""
ADAPTER = {
    IN_CONTEXT: _edit_in_context(4, 0.5, IN_CONTEXT_GUIDANCE),
    "in context, no residual": _edit_in_context(4, 0.0, 1.0, IN_CONTEXT_GUIDANCE, 2.0),
    "in context, whole residual": _edit_in_context(4, 1.0, IN_CONTEXT_GUIDANCE),
    "in context, 10 steps": _edit_in_context(10, 0.0, 1.0, IN_CONTEXT_GUIDANCE),
}
"""What the bundled adapter does."""


def _change_injection(
    inverter: Inverter | None = None, *, guidance: tuple[float, ...] = (3.0,), **settings: Any
) -> Variant:
    """Return K/V injection at one scale, where it is compared, with an inverter, a setting or an option changed."""
    default = METHODS[INJECTION]
    known = {name: value for name, value in settings.items() if name in Variant.__dataclass_fields__}
    options = {name: value for name, value in settings.items() if name not in known}
    editor = replace(default.editor, **options)
    return replace(default, inverter=inverter or default.inverter, editor=editor, guidance=guidance, **known)


OPTIONS = {
    "inverted by BDIA": _change_injection(BDIA()),
    "inverted by DDIM": _change_injection(DDIM()),
    "inverted by FixedPoint": _change_injection(FixedPoint()),
    "inverted under the source prompt": _change_injection(invert_under_source=True),
    "no source prompt": _change_injection(source_prompt=False),
    "source rows told the edit": _change_injection(source_text="edit"),
    "two source rows": _change_injection(source_rows="paired", source_text="source"),
    "first half of the layers": _change_injection(layers=(0, 3)),
    "second half of the layers": _change_injection(layers=(3, None)),
    "first half of the steps": _change_injection(steps=(0, 25)),
    "second half of the steps": _change_injection(steps=(25, None)),
    "kv_scale .5": _change_injection(kv_scale=0.5),
    "from step 10": _change_injection(first_step=10),
    "away from the source prompt": _change_injection(negative="source"),
    "guided in the first half": _change_injection(guidance_steps=(0, 25)),
    "mask from the velocities": _change_injection(velocity_mask=0.3),
    "the true mask": _change_injection(tell_mask=True),
    "K-RNR start": _change_injection(initial="k_rnr", first_step=1),
    "random start": _change_injection(initial="random", seeds=SEEDS),
}
"""K/V injection with one thing changed, at one scale: for 50 steps and 6 layers."""

TRUTH_FROM = {f"truth from step {step}": step for step in (4, 12, 20)}
LIMITS = {
    name: Variant(None, Denoise(initial="random", first_step=step), from_truth=True, guidance=(1.0,))
    for name, step in TRUTH_FROM.items()
}
BEGUN_AT = {f"default from step {step}": step for step in (12, 20)}
LIMITS |= {
    name: Variant(INVERTER, replace(EDITOR, first_step=step), guidance=(DEFAULT_GUIDANCE,), seeds=SEEDS)
    for name, step in BEGUN_AT.items()
}
"""What limits the edits, for 50 steps: what the noise of a step leaves of the truth itself, sampled down again under
its own caption, the first of the steps being the default's; and what the default does that begins at a later step."""

VARIANTS = METHODS | ADAPTER | OPTIONS | LIMITS
GROUPS = {
    "methods": (*METHODS, *ADAPTER, *LIMITS),
    "adapter": tuple(ADAPTER),
    "options": (INJECTION, *OPTIONS),
    "all": tuple(VARIANTS),
}
"""What ``--variants`` takes beside names; the options stand beside the injection that they change."""


@dataclass(frozen=True)
class Job:
    """A `Job` is one video to make for every edit: a row of the records.

    Args:
        method: A name of `VARIANTS`, or `CEILING` or `NOTHING`.
        guidance: The scale; ``None`` for a row without a method.
        seed: 0, 1, …
    """

    method: str
    guidance: float | None = None
    seed: int = 0

    def make_key(self, edit_id: str) -> str:
        """Return the key of its record for an edit."""
        if self.guidance is None:
            return f"{edit_id}/{self.method}"
        return f"{edit_id}/{self.method}/{self.guidance:g}/{self.seed}/{VARIANTS[self.method].digest}"


def make_jobs(names: Sequence[str], guidance: Sequence[float]) -> list[Job]:
    """List what is made for every edit; the rows without a method come first.

    Args:
        names: Of `VARIANTS` or `GROUPS`.
        guidance: Scales of the variants that name none.

    Raises:
        ValueError: A name that there is not.
    """
    for name in names:
        if name not in VARIANTS and name not in GROUPS:
            raise ValueError(f"variants: must be of {'; '.join([*GROUPS, *VARIANTS])}, got {name!r}")
    jobs = [Job(CEILING), Job(NOTHING)]
    for name in dict.fromkeys(member for given in names for member in GROUPS.get(given, (given,))):
        variant = VARIANTS[name]
        scales = guidance if variant.guidance is None else variant.guidance
        jobs += [Job(name, scale, seed) for scale in scales for seed in range(variant.seeds)]
    return jobs
