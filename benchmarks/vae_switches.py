"""The switches of the VAE are timed: weights with channels last, compiled, and both; with distances."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from ddim_lightning.models.vae import decode_latents, encode_video, order_channels_last
from ddim_lightning.runtime.compile import apply_vae_compile

from .edit_report import make_table
from .measuring import read_clock, relative_l2

PLAIN, COMPILED = "plain", "compiled"
SWITCHES = {
    PLAIN: (),
    "channels last": (order_channels_last,),
    COMPILED: (apply_vae_compile,),
    "channels last, compiled": (order_channels_last, apply_vae_compile),
}
"""What is applied to a copy of the VAE."""


def measure_vae(
    vae: AutoencoderKLCogVideoX, video: Tensor, rounds: int, device: torch.device, *, compiled: bool
) -> list[dict[str, Any]]:
    """Time all variants in turns, after a round that warms up.

    Args:
        vae: As it was loaded; copied.
        video: (1, f, 3, h, w) uint8.
        rounds: Timed rounds.
        device: Where the VAE is.
        compiled: Whether those that are compiled are measured, too.
    """
    rows: list[dict[str, Any]] = []
    variants: list[AutoencoderKLCogVideoX] = []
    for name, switches in SWITCHES.items():
        if COMPILED in name and not compiled:
            continue
        variants.append(copy.deepcopy(vae))
        for switch in switches:
            switch(variants[-1])
        rows.append({"name": name, "encode_s": [], "decode_s": []})
    latents = encode_video(vae, video)
    decoded = decode_latents(vae, latents)
    for turn in range(rounds + 1):
        order = list(zip(variants, rows, strict=True))
        for variant, row in order if turn % 2 else order[::-1]:
            start = read_clock(device)
            ours = encode_video(variant, video)
            middle = read_clock(device)
            again = decode_latents(variant, latents)
            end = read_clock(device)
            row |= {"latents_l2": relative_l2(ours, latents), "video_l2": relative_l2(again, decoded)}
            if turn:
                row["encode_s"].append(middle - start)
                row["decode_s"].append(end - middle)
    return rows


def tell_vae(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table that a person reads."""
    told = []
    for row in rows:
        spent = []
        for part in ("encode_s", "decode_s"):
            pairs = zip(rows[0][part], row[part], strict=True)
            spent += [f"{statistics.median(row[part]):.3f}", f"{statistics.median(a / b for a, b in pairs):.2f}"]
        told.append((row["name"], *spent, f"{row['latents_l2']:.1e}", f"{row['video_l2']:.1e}"))
    head = ("VAE", "encode s", "times as fast", "decode s", "times as fast", "distance, latents", "distance, video")
    return make_table(head, told)
