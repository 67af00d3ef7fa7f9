"""The released variants: at their full size on the meta device, and small ones compiled and exported."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published import COGVIDEOX_5B_VAE, make_random_components
from ddim_lightning.limits import VideoLimits, count_latent_frames
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.layout import RowLayout, count_video_tokens
from ddim_lightning.network.network import Network
from ddim_lightning.network.standalone import StandaloneNetwork
from ddim_lightning.runtime.compile import apply_compile
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error
from tests.variants import KEYS, make_published

SIZES_1_5 = {"multiple": 16, "temporal": 4, "patch_frames": 2, "largest": (2400, 2400)}
LIMITS = {
    "5B": VideoLimits(49, 480, 720, multiple=16, temporal=4),
    "1.5-5B": VideoLimits(81, 768, 1360, **SIZES_1_5),
    "5B-I2V": VideoLimits(49, 480, 720, multiple=16, temporal=4, fixed=True, needs_image=True),
    "1.5-5B-I2V": VideoLimits(81, 768, 1360, **SIZES_1_5, needs_image=True),
}
WHAT = {
    "5B": "text-to-video",
    "1.5-5B": "1.5 text-to-video",
    "5B-I2V": "image-to-video",
    "1.5-5B-I2V": "1.5 image-to-video",
}
# In tokens of 16 x 16 pixels; of 1.5 two latent frames are one token: 81 frames are 21 latent frames, and 1 in front.
TOKENS = {"5B": 13 * 30 * 45, "1.5-5B": 11 * 48 * 85, "5B-I2V": 13 * 30 * 45, "1.5-5B-I2V": 11 * 48 * 85}
# What is beside the weights of CogVideoX-5B, and what is of another shape.
WEIGHTS = {
    "5B": {},
    "1.5-5B": {
        "patch_embed.proj.weight": (3072, 16 * 8),
        "proj_out.weight": (16 * 8, 3072),
        "proj_out.bias": (16 * 8,),
    },
    "5B-I2V": {
        "patch_embed.proj.weight": (3072, 32, 2, 2),
        "patch_embed.pos_embedding": (1, 226 + 13 * 30 * 45, 3072),
    },
    "1.5-5B-I2V": {
        "patch_embed.proj.weight": (3072, 32 * 8),
        "proj_out.weight": (16 * 8, 3072),
        "proj_out.bias": (16 * 8,),
        **{f"ofs_embedding.linear_{k}.weight": (512, 512) for k in (1, 2)},
        **{f"ofs_embedding.linear_{k}.bias": (512,) for k in (1, 2)},
    },
}


def make(name):
    meta = {"device": torch.device("meta"), "dtype": torch.bfloat16, "seed": 0}
    return make_random_components(make_published(name), COGVIDEOX_5B_VAE, COGVIDEOX_5B_SCHEDULER, **meta)


@pytest.fixture(scope="module")
def shapes():
    return {name: tuple(weight.shape) for name, weight in make("5B").transformer.state_dict().items()}


@pytest.mark.parametrize("name", list(KEYS))
def test_a_variant_at_its_full_size(name, shapes):
    parts = make(name)
    assert (parts.limits, parts.kind) == (LIMITS[name], WHAT[name])
    assert {key: tuple(weight.shape) for key, weight in parts.transformer.state_dict().items()} == {
        **shapes,
        **WEIGHTS[name],
    }
    limits, config = parts.limits, parts.transformer.config
    size = (count_latent_frames(limits.num_frames, limits), limits.height // 8, limits.width // 8)
    assert count_video_tokens(config, *size) == TOKENS[name]
    latents = torch.empty(3, size[0], config.in_channels, *size[1:], device="meta", dtype=torch.bfloat16)
    embeds = torch.empty(3, 226, 4096, device="meta", dtype=torch.bfloat16)
    for network in (Network(parts.transformer, SDPA), DiffusersNetwork(parts.transformer, SDPA)):
        velocity = network(latents, embeds, 500, wanted=2, reads=(2, 2))
        assert velocity.shape == (2, size[0], 16, *size[1:])


def test_positions_end_and_counts_are_padded():
    limits = LIMITS["1.5-5B"]
    assert [count_latent_frames(n, limits) for n in (9, 13, 17, 21, 49, 81)] == [4, 4, 6, 6, 14, 22]
    assert limits.trained_multiple == 16
    limits.check_size(2400, 16)
    with pytest.raises(ValueError, match=r"^height, width: .*2400 x 2400 .*got 2416 x 16"):
        limits.check_size(2416, 16)
    learned = LIMITS["5B-I2V"]
    learned.check_size(480, 720)
    learned.check_count(49)
    for needs_image in LIMITS["5B-I2V"], LIMITS["1.5-5B-I2V"]:
        with pytest.raises(ValueError, match=r"^num_frames: .*image-to-video .*got 97"):
            needs_image.check_count(97)
    with pytest.raises(ValueError, match=r"^height, width: .*480 x 720 .*got 720 x 480"):
        learned.check_size(720, 480)
    with pytest.raises(ValueError, match=r"^num_frames: .*49 .*got 45"):
        learned.check_count(45)


@pytest.mark.slow
def test_a_compiled_variant_agrees_with_an_eager_one():
    torch._dynamo.reset()
    eager, compiled = (Network(make_variant(**VARIANTS["1.5-5B-I2V"]), SDPA) for _ in range(2))
    apply_compile(compiled, True)
    rows = make_rows(3, eager.transformer.config)
    ours, theirs = (network(*rows, 500, wanted=2, reads=(2, 2)) for network in (compiled, eager))
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", ["1.5-5B-I2V", "5B-I2V"])
def test_an_exported_variant_agrees_with_the_network(name):
    transformer = make_variant(**VARIANTS[name])
    rows = make_rows(3, transformer.config)
    size = (rows[0].shape[1], *rows[0].shape[3:])
    alone = StandaloneNetwork(transformer, RowLayout(3, 2, (2, 2)), size, SDPA).eval()
    program = torch.export.export(alone, (*rows, torch.tensor(20), torch.full((3,), 0.5)))
    kv_scale = torch.tensor([1.0, 0.5, 0.25])
    wanted = Network(transformer, SDPA)(*rows, 500, wanted=2, reads=(2, 2), kv_scale=kv_scale)
    assert relative_error(program.module()(*rows, torch.tensor(500), kv_scale), wanted) <= 1e-5
