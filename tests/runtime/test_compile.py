"""The VAE compiled, and graphs that another machine starts with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache

from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.runtime.compile import apply_vae_compile
from ddim_lightning.runtime.compile_cache import load_compiled, save_compiled
from tests.modules import make_module
from tests.network.test_adapters import TARGETS, write_lora

COUNTERS = torch._dynamo.utils.counters


def make_vae():
    torch.manual_seed(0)
    one = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 2}
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",), "up_block_types": ("CogVideoXUpBlock3D",)}
    return AutoencoderKLCogVideoX(**one, **blocks, temporal_compression_ratio=4).eval()


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_vae_agrees_and_serves_many_clips_with_few_graphs():
    torch._dynamo.reset()
    COUNTERS.clear()
    plain, compiled = make_vae(), make_vae()
    apply_vae_compile(compiled)
    for seed in range(2):
        video = torch.rand(1, 9, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        latents = encode_video(plain, video)
        torch.testing.assert_close(encode_video(compiled, video), latents, rtol=1e-4, atol=1e-4)
        theirs = decode_latents(plain, latents)
        torch.testing.assert_close(decode_latents(compiled, latents), theirs, rtol=1e-4, atol=1e-4)
        graphs = COUNTERS["stats"]["unique_graphs"]
        if seed == 0:
            first = graphs
    assert first == graphs <= 4  # first frames and those after them, up and down


def test_saved_graphs_are_found_by_a_process_with_empty_caches(tmp_path):
    def run():
        torch._dynamo.reset()
        COUNTERS.clear()
        torch.compile(lambda x: (x.sin() * 3.0).cumsum(0), fullgraph=True, dynamic=False)(torch.arange(5.0))
        return dict(COUNTERS["inductor"])

    folder = tmp_path / "graphs"
    load_compiled(folder)  # nothing there yet
    with fresh_cache():
        assert run()["fxgraph_cache_miss"] == 1
        save_compiled(folder)
    with fresh_cache():
        assert not list(Path(cache_dir()).iterdir())
        load_compiled(folder)
        found = run()
    assert found["fxgraph_cache_hit"] == 1 and "fxgraph_cache_miss" not in found
    assert [path.suffix for path in folder.iterdir()] == [".bin"]


@torch.no_grad()
def test_swapping_a_lora_compiles_nothing_anew(tiny_model, tmp_path):
    module = make_module(str(tiny_model), num_inference_steps=1, inverter="DDIM", compile=True)
    module.load("cpu")
    loras = {name: tmp_path / name for name in ("attention", "feed-forward", "norms")}
    for name, folder in loras.items():
        write_lora(module.transformer, TARGETS[name], folder)
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    COUNTERS.clear()
    plain = module.engine.invert(latents).x_T
    graphs, pipeline, seen = COUNTERS["stats"]["unique_graphs"], module.pipeline, [plain]
    for name, folder in loras.items():
        pipeline.load_lora_weights(folder, adapter_name=name)
        pipeline.set_adapters([name], [0.5])
        seen.append(module.engine.invert(latents).x_T)
        assert (seen[-1] - seen[-2]).norm() > 1e-3 * plain.norm()
    pipeline.set_adapters(["attention", "norms"], [1.0, -0.5])
    pipeline.fuse_lora(adapter_names=["attention"])
    module.engine.invert(latents)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(module.engine.invert(latents).x_T, plain, rtol=1e-4, atol=1e-4)
    assert graphs == COUNTERS["stats"]["unique_graphs"] == 1
