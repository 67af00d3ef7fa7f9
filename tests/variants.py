"""The released variants of CogVideoX-5B: what their transformers' configs say beside that of CogVideoX-5B itself."""

from __future__ import annotations

# Sizes in which the variants differ; a small transformer has its own.
_SIZES_1_5 = {"sample_frames": 81, "sample_height": 300, "sample_width": 300}

KEYS = {
    "5B": {"use_rotary_positional_embeddings": True},
    "1.5-5B": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
    "5B-I2V": {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
    "1.5-5B-I2V": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}
"""By variant, what makes its architecture; beside it image-to-video models take twice the channels (`adapt`)."""


def adapt(name, sizes):
    """Return arguments of `CogVideoXTransformer3DModel`: sizes of a transformer, made over into a variant's."""
    made = {**sizes, **KEYS[name]}
    if name.endswith("I2V"):
        made["in_channels"] = 2 * sizes["out_channels"]
    if name == "1.5-5B-I2V":
        made["ofs_embed_dim"] = sizes["time_embed_dim"]
    return made


def make_published(name):
    """Return the published arguments of a variant's transformer."""
    from benchmarks.published import COGVIDEOX_5B_TRANSFORMER  # the tests of mutations have no benchmarks

    return adapt(name, COGVIDEOX_5B_TRANSFORMER) | (_SIZES_1_5 if name.startswith("1.5") else {})
