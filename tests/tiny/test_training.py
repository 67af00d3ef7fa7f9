"""The random tiny model: valid for plain diffusers, reproducible, and with nothing trivial in it."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline
from safetensors.torch import load_file

from ddim_lightning.tiny.shapes import VOCABULARY
from ddim_lightning.tiny.training import make_tokenizer
from tests.random_tiny import write_random_tiny

WEIGHTS = ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_tiny(tmp_path_factory.mktemp("tiny") / "deep" / "folder")


@pytest.fixture(scope="module")
def pipeline(folder):
    return CogVideoXPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def read_weights(folder):
    return {f"{part}.{k}": v for part in WEIGHTS for k, v in load_file(folder / f"{part}.safetensors").items()}


def test_plain_diffusers_makes_a_video_with_it(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        "a red circle moving right on a blue background",
        num_frames=9,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert video.shape == (1, 9, 3, 64, 64)
    assert video.isfinite().all()
    assert video.std() > 0.05


def test_the_folder_holds_what_diffusers_writes_itself(folder, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    written, expected = ({p.relative_to(root).as_posix() for p in root.rglob("*.*")} for root in (folder, tmp_path))
    assert written == expected | {"recommended.yaml"}
    index, theirs = (json.loads((root / "model_index.json").read_text()) for root in (folder, tmp_path))
    assert index == {key: value for key, value in theirs.items() if key not in ("_diffusers_version", "_name_or_path")}
    ours, again = read_weights(folder), read_weights(tmp_path)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


def test_the_seed_decides_every_weight_and_the_global_state_stays(folder, tmp_path):
    before = torch.get_rng_state()
    again, other = (read_weights(write_random_tiny(tmp_path / str(seed), seed=seed)) for seed in (0, 7))
    assert torch.equal(torch.get_rng_state(), before)
    first = read_weights(folder)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_the_text_the_time_and_the_place_all_matter(pipeline):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 3, 8, 16, 16, generator=generator)
    right, left = (
        pipeline.encode_prompt(f"a red circle moving {way} on a blue background", "", False, max_sequence_length=16)[0]
        for way in ("right", "left")
    )
    table = pipeline._prepare_rotary_positional_embeddings(64, 64, 3, torch.device("cpu"))
    moved = tuple(part.flip(0) for part in table)

    def velocity(embeds, timestep, rotary):
        with torch.no_grad():
            return pipeline.transformer(latents, embeds, torch.tensor([timestep]), image_rotary_emb=rotary).sample

    first = velocity(right, 500, table)
    assert 0.3 < first.std() < 3
    for other in (velocity(left, 500, table), velocity(right, 900, table), velocity(right, 500, moved)):
        assert (other - first).std() > 0.01 * first.std()


def test_the_vae_tells_videos_apart_and_fills_the_range(pipeline):
    video = torch.rand(2, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(video).latent_dist.mode()
        decoded = pipeline.vae.decode(latents).sample
    assert latents.shape == (2, 8, 3, 16, 16)
    assert decoded.shape == video.shape
    assert (latents[0] - latents[1]).std() > 0.1
    assert (decoded[0] - decoded[1]).std() > 0.05
    assert 0.1 < decoded.std() < 2


def test_options_reach_the_files(tmp_path):
    write_random_tiny(
        tmp_path,
        rotary=False,
        snr_shift_scale=3.0,
        scheduler="CogVideoXDPMScheduler",
        transformer={"num_layers": 1, "sample_height": 12},
        vae={"scaling_factor": 0.5},
        max_shard_size="50KB",
    )
    pipeline = CogVideoXPipeline.from_pretrained(tmp_path)
    assert type(pipeline.scheduler) is CogVideoXDPMScheduler
    assert pipeline.scheduler.config.snr_shift_scale == 3.0
    assert pipeline.transformer.config.use_rotary_positional_embeddings is False
    assert (len(pipeline.transformer.transformer_blocks), pipeline.transformer.config.sample_height) == (1, 12)
    assert pipeline.vae.config.scaling_factor == 0.5
    for part in ("transformer", "vae"):
        assert (tmp_path / part / "diffusion_pytorch_model.safetensors.index.json").is_file()


def test_the_tokenizer_knows_the_shapes_world_and_nothing_else():
    tokenizer = make_tokenizer()
    assert len(tokenizer) == len(VOCABULARY) + 4
    ids = {word: tokenizer(word).input_ids for word in VOCABULARY}
    assert all(len(pieces) == 2 and pieces[1] == tokenizer.eos_token_id for pieces in ids.values())
    assert len({pieces[0] for pieces in ids.values()}) == len(VOCABULARY)
    assert tokenizer.unk_token_id in tokenizer("zebra").input_ids
    assert len(tokenizer("a magenta triangle moving right on a purple background").input_ids) <= 16
    assert tokenizer.decode(tokenizer("a red circle").input_ids, skip_special_tokens=True) == "a red circle"
