"""What a result depends on, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from diffusers import CogVideoXPipeline, FirstBlockCacheConfig
from peft import LoraConfig

from ddim_lightning.engine.fingerprint import make_clip_fingerprint
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import Clip, FrameSelection
from tests.modules import make_module


@pytest.fixture(scope="module")
def module(tiny_model):
    made = make_module(str(tiny_model), num_inference_steps=2)
    made.load("cpu")
    return made


CLIP = Clip("a", torch.arange(5 * 3 * 8 * 16).reshape(5, 3, 8, 16).to(torch.uint8), prompts=("a red circle",))


def find_changed(module, clip=CLIP, seed=0, **settings):
    """The keys of the fingerprint that are not those of `CLIP`."""
    described = module.describe()
    first = make_clip_fingerprint(module.engine, CLIP, seed=0, settings=described)
    other = make_clip_fingerprint(module.engine, clip, seed=seed, settings={**described, **settings})
    assert first.keys() == other.keys()
    return {name for name in first if first[name] != other[name]}


def test_the_same_clip_under_another_name_is_the_same(module, tmp_path):
    assert find_changed(module) == set()
    assert find_changed(module, replace(CLIP, id="b", frames=CLIP.frames.clone())) == set()
    paths = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    prints = []
    for path in paths:
        path.write_text("equal")
        clip = replace(CLIP, source=str(path), mask_source=str(path), first_frame_source=str(path))
        prints.append(make_clip_fingerprint(module.engine, clip, seed=0, settings=module.describe()))
    assert prints[0] == prints[1]


def test_switches_of_diffusers_are_told_where_they_act(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=2, forward="diffusers")
    module.load("cpu")
    plain = make_clip_fingerprint(module.engine, CLIP, seed=0, settings=module.describe())
    assert "switches" not in plain
    seen = []
    for threshold in (0.1, 0.2):
        module.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        for _ in range(2):
            seen.append(make_clip_fingerprint(module.engine, CLIP, seed=0, settings=module.describe())["switches"])
            module.engine.invert(torch.zeros(1, 3, 8, 4, 6))
        module.transformer.disable_cache()
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert "switches" not in make_clip_fingerprint(module.engine, CLIP, seed=0, settings=module.describe())


def test_a_source_with_other_sound_is_another_one_and_a_folder_has_none(module, tmp_path):
    def make(source):
        return make_clip_fingerprint(
            module.engine, replace(CLIP, source=str(source)), seed=0, settings=module.describe()
        )

    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(300_000))
    first = make(path)
    path.write_bytes(bytes(299_000) + b"x" + bytes(999))
    assert {name for name, value in make(path).items() if value != first[name]} == {"request"}
    folder = make(tmp_path)
    (tmp_path / "Thumbs.db").touch()
    assert make(tmp_path) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"fps": Fraction(9)},
        {"prompts": ("a green square",)},
        {"source_prompt": "a blue square"},
        {"negative_prompt": "blurry"},
        {"mask": torch.ones(5, 8, 16, dtype=torch.bool)},
        {"first_frame": torch.ones(3, 8, 16, dtype=torch.uint8)},
        {"selection": FrameSelection(0, 1, 5, 0)},
    ],
)
def test_another_request_is_another_result(change, module):
    assert find_changed(module, replace(CLIP, **change)) == {"request"}


def test_one_bit_of_the_frames_or_of_the_mask_is_enough(module):
    assert find_changed(module, replace(CLIP, frames=CLIP.frames ^ (CLIP.frames == 7).byte())) == {"clip"}
    masks = [torch.ones(5, 8, 16, dtype=torch.bool) for _ in range(2)]
    masks[1][4, 7, 15] = False
    made = [
        make_clip_fingerprint(module.engine, replace(CLIP, mask=mask), seed=0, settings=module.describe())
        for mask in masks
    ]
    assert made[0] != made[1]


def test_settings_that_change_results_count_and_others_do_not(module):
    runtime, outputs = module.describe()["runtime"], module.describe()["outputs"]
    assert find_changed(module, seed=1) == {"request"}
    assert find_changed(module, guidance_scale=3.0) == {"settings"}
    assert find_changed(module, runtime={**runtime, "batch_prompts": True}) == {"settings"}
    assert find_changed(module, outputs={**outputs, "save_trajectory": True}) == {"settings"}
    assert find_changed(module, runtime={**runtime, "offload": "model", "prompt_cache": "there"}) == set()
    assert find_changed(module, runtime={**runtime, "window_overlap": 0.5}) == set()  # of one window
    assert find_changed(module, outputs={**outputs, "on_error": "raise", "trajectory_dir": "there"}) == set()
    assert find_changed(module, model="elsewhere", seed=0) == set()


def make_print(module):
    return make_clip_fingerprint(module.engine, CLIP, seed=0, settings=module.describe())


def test_the_text_encoder_of_a_pipeline_counts_also_when_it_is_released(tiny_model):
    prints = []
    for factor in (1.0, 1.5):
        pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
        for weight in pipeline.text_encoder.parameters():
            weight.data.mul_(factor)
        module = DDIMInversionModule.from_pipeline(pipeline)
        module.load("cpu")
        module.encode_prompts([""])
        before = make_print(module)
        module.engine.prompts.release()
        assert make_print(module) == before
        prints.append(before)
    assert {name for name in prints[0] if prints[0][name] != prints[1][name]} == {"text_encoder"}


def test_how_strongly_adapters_act_counts(tiny_model):
    pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
    plain = DDIMInversionModule.from_pipeline(pipeline)
    plain.load("cpu")
    prints = [make_print(plain)]
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one")
    for scale in (1.0, 0.5):
        pipeline.transformer.set_adapters(["one"], [scale])
        prints.append(make_print(plain))
    pipeline.transformer.disable_lora()
    prints.append(make_print(plain))
    assert len({one["model"] for one in prints}) == 4
