"""The measures have names, give numbers, and need masks, prompts or networks; nothing heavy is imported here.

Networks come from files and folders that the user names, or from what torch and the hub keep on this machine. Nothing
is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LATENTS = "latent_error"
"""The measure that compares files of latents, not frames."""


@dataclass(frozen=True)
class Measure:
    """A `Measure` is something that can be measured of a video beside its reference.

    Args:
        numbers: The names of what it gives; one that does not apply to a video is left out.
        needs: What it cannot do without: ``mask``, ``prompt``, and networks by their fields in `Networks`.
        is_compared: Whether its numbers depend on the pixels of the reference; in the record of a run, those of an edit
            then end in ``_vs_source``.
    """

    numbers: tuple[str, ...]
    needs: tuple[str, ...] = ()
    is_compared: bool = True


@dataclass(frozen=True)
class Networks:
    """The `Networks` say where the networks of measures lie.

    Args:
        lpips_weights: File of torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1, for ``lpips``;
            ``None`` takes the first of them that torch's own cache holds.
        clip_model: Folder of a CLIP model as transformers saves it, or a hub id that the cache holds, for ``clip_text``
            and ``clip_frames``; ``None`` looks for ``openai/clip-vit-large-patch14`` there.
        raft_weights: File of torchvision's weights of RAFT, large or small, for ``warp_error``; ``None`` takes the
            first of them that torch's own cache holds.
        tracker: Clone of CoTracker's repository with ``checkpoints/scaled_offline.pth``, for ``motion_fidelity``; its
            code is run.
    """

    lpips_weights: str | None = None
    clip_model: str | None = None
    raft_weights: str | None = None
    tracker: str | None = None


def _list_parts(name: str) -> tuple[str, ...]:
    return (f"{name}_edit_part", f"{name}_unedit_part")


def _list_regions(name: str) -> tuple[str, ...]:
    return (name, f"{name}_inside", f"{name}_outside")


MEASURES: Mapping[str, Measure] = {
    "psnr": Measure(_list_regions("psnr")),
    "ssim": Measure(_list_regions("ssim")),
    "lpips": Measure(_list_regions("lpips"), ("lpips_weights",)),
    "five_psnr": Measure(_list_parts("psnr"), ("mask",)),
    "five_mse": Measure(_list_parts("mse"), ("mask",)),
    "five_ssim": Measure(_list_parts("ssim"), ("mask",)),
    "five_lpips": Measure(_list_parts("lpips"), ("mask", "lpips_weights")),
    "clip_text": Measure(("clip_text",), ("prompt", "clip_model"), is_compared=False),
    "clip_frames": Measure(("clip_frames", "clip_frames_pairs"), ("clip_model",), is_compared=False),
    "five_clip": Measure(
        ("clip_similarity_target_image", "clip_similarity_target_image_edit_part"),
        ("prompt", "clip_model"),
        is_compared=False,
    ),
    "warp_error": Measure(("warp_error",), ("raft_weights",), is_compared=False),
    "flow_fidelity": Measure(("flow_fidelity",), ("raft_weights",), is_compared=False),
    "motion_fidelity": Measure(("motion_fidelity",), ("tracker",), is_compared=False),
    "five_motion": Measure(("motion_fidelity_score",), ("tracker",), is_compared=False),
    LATENTS: Measure((LATENTS, f"{LATENTS}_noise")),
}
"""All measures by name; ``docs/metrics.md`` says how each is defined."""
OF_FRAMES = tuple(name for name in MEASURES if name != LATENTS)
"""Those that look at videos."""
DEFAULT = tuple(name for name in MEASURES if not name.startswith("five_"))
"""What is measured where nothing is named: not what FiVE-Bench alone defines."""


def check_measures(names: Iterable[str], known: Iterable[str] = MEASURES) -> tuple[str, ...]:
    """Return the names of measures, each once.

    Args:
        names: What is asked for.
        known: What may be asked for.

    Raises:
        ValueError: A name that is not known.
    """
    names, known = [names] if isinstance(names, str) else list(names), tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"metrics: must be of {', '.join(known)}, got {name!r}")
    return tuple(dict.fromkeys(names))
