"""Offloading on a whole model: the same bytes, and weights where the preset says."""

from __future__ import annotations

import gc
import json
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from lightning import LightningDataModule, Trainer
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule, KVInjection
from ddim_lightning.cli.main import main
from ddim_lightning.engine.config import Runtime
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.runtime.offload import ParkedModule
from ddim_lightning.runtime.streaming import WeightStream
from ddim_lightning.types import EditRequest
from tests import modules
from tests.random_tiny import write_random_tiny

CPU = torch.device("cpu")
PARKING = ("model", "blocks")


class Clips(LightningDataModule):
    def __init__(self, clips):
        super().__init__()
        self.clips = clips

    def predict_dataloader(self):
        return DataLoader(self.clips, batch_size=None)

    def all_prompts(self):
        return [prompt for clip in self.clips for prompt in clip.prompts]


def make_clip(name, *prompts, size=(5, 3, 16, 24)):
    frames = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(len(name)), dtype=torch.uint8)
    return Clip(name, frames, prompts=prompts or ("a red circle",))


def make_module(model, offload, **options):
    wanted = {"num_inference_steps": 2, "on_error": "raise", "offload": offload}
    return modules.make_module(str(model), **wanted | options)


def predict(module, *clips, accelerator="cpu", **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator=accelerator, devices=1, logger=False, **quiet, **options)
        return trainer.predict(module, Clips(list(clips)))


def load(model, offload, **options):
    module = make_module(model, offload, **options)
    module.load(CPU)
    return module.engine


def digest(engine):
    return digest_model(engine.components, engine.device)


def check_same_bytes(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.status == other.status == "done" and one.metrics == other.metrics
        assert one.diagnosis == other.diagnosis and one.fingerprint == other.fingerprint
        assert one.trajectory.keys() == other.trajectory.keys()
        assert all(torch.equal(tensor, other.trajectory[name]) for name, tensor in one.trajectory.items())
        assert torch.equal(one.vae_round_trip, other.vae_round_trip)
        assert torch.equal(one.reconstruction, other.reconstruction)
        for edit, wanted in zip(one.edits, other.edits, strict=True):
            assert torch.equal(edit.latents, wanted.latents) and torch.equal(edit.frames, wanted.frames)


def test_tiling_is_near_and_only_where_it_is_asked_for():
    video = torch.rand(1, 5, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    plain, tiled = (load(Path("tiny"), "model", vae_tiling=tiling) for tiling in (False, True))
    latents = plain.encode(video)
    encoded, decoded = tiled.encode(video), tiled.decode(latents)
    for ours, theirs in ((encoded, latents), (decoded, plain.decode(latents))):
        assert ours.shape == theirs.shape
        assert 0.0 < float((ours - theirs).norm() / theirs.norm()) < 0.2
    assert digest(tiled) != digest(plain) == digest(load(Path("tiny"), "none"))


def list_storages(nbytes, *, collect=True):
    """The storages of a size that are alive."""
    if collect:
        gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.device == CPU]
    return {one.untyped_storage().data_ptr() for one in found if one.untyped_storage().nbytes() == nbytes}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Five blocks: more than two, and an odd number."""
    return write_random_tiny(tmp_path_factory.mktemp("models") / "deep", transformer={"num_layers": 5})


@pytest.mark.parametrize("offload", PARKING)
@pytest.mark.parametrize(
    "options", [{}, {"editor": KVInjection()}, {"batch_prompts": True, "dtype": "bfloat16"}, {"channels_last": True}]
)
def test_results_are_the_same_bytes(offload, options, tiny_model):
    clips = [make_clip("a"), make_clip("bb", "a red square", "a blue circle")]
    options = {"save_trajectory": True, **options}
    wanted = predict(make_module(tiny_model, "none", **options), *clips)
    module = make_module(tiny_model, offload, **options)
    check_same_bytes(predict(module, *clips), wanted)
    assert module.engine.prompts.text_encoder is None
    # Again, with a text encoder that has to come back, and tensors that inference mode has nothing to do with.
    again = predict(module, make_clip("a", "a green cross"), inference_mode=False)
    check_same_bytes(again, predict(make_module(tiny_model, "none", **options), make_clip("a", "a green cross")))


@pytest.mark.parametrize("offload", PARKING)
def test_settings_and_state_dict_are_those_of_the_model(offload, tiny_model):
    exact, parking = load(tiny_model, "none"), load(tiny_model, offload)
    for act in ("transformer", "vae", None):
        parking.to_device(act)
        for part in ("transformer", "vae"):
            ours, theirs = (getattr(one.components, part).state_dict() for one in (parking, exact))
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert digest(parking) == digest(exact)
    (result,) = predict(make_module(tiny_model, offload), make_clip("a"))
    assert result.settings["runtime"]["offload"] == offload and result.settings["device"] == "cpu"


@pytest.mark.parametrize("offload", PARKING)
def test_what_does_not_work_is_parked(offload, tiny_model):
    module = make_module(tiny_model, offload)
    module.load(CPU)
    placement = module.engine.placement
    assert placement is not None
    (vae,), transformer = placement.parts["vae"], placement.parts["transformer"]
    assert isinstance(vae, ParkedModule) and vae.parked
    seen = defaultdict(set)

    def is_parked(part):
        return part.parked if isinstance(part, ParkedModule) else not part._slots

    def look(progress):
        if progress.done:
            states = {is_parked(part) for part in transformer}
            # Norms are streamed when a timestep is new; blocks in every pass.
            seen[progress.stage].add((vae.parked, states == {True}))
            assert placement is not None
            assert placement.current == ("vae" if progress.stage in ("encode", "decode") else "transformer")

    module.progress_listeners.append(look)
    predict(module, make_clip("a"), make_clip("bb"))
    network = {stage: {(True, False)} for stage in ("invert", "reconstruct", "edit")}
    assert seen == {"encode": {(False, True)}, "decode": {(False, True)}, **network}


def test_parked_weights_are_given_back(tiny_model):
    engine = load(tiny_model, "model")
    assert engine.placement is not None
    for part in ("transformer", "vae"):
        (parked,) = engine.placement.parts[part]
        assert isinstance(parked, ParkedModule)
        ((_, copy),) = parked._chunks
        engine.to_device(part)
        if part == "transformer":
            engine.invert(torch.randn(1, 2, 8, 4, 6))
            # The gathered weights are those very tensors: nothing was put together anew.
            chunks = {weights.qkv.weight.untyped_storage().data_ptr() for weights in engine.network.blocks}
            assert chunks == list_storages(copy.nbytes) - {copy.buffer.data_ptr()}
        assert len(list_storages(copy.nbytes)) == 2
        engine.to_device(None)
        assert list_storages(copy.nbytes) == {copy.buffer.data_ptr()}


def test_two_blocks_are_on_the_device_at_any_time(deep_model):
    engine = load(deep_model, "blocks", num_inference_steps=1)
    assert engine.placement is not None
    blocks, norms = engine.placement.parts["transformer"]
    assert isinstance(blocks, WeightStream) and isinstance(norms, WeightStream)
    on_host = {copy.buffer.data_ptr() for stream in (blocks, norms) for copy in stream.copies}
    # All that a block has is in those copies, and nowhere else.
    for parameter in engine.components.transformer.transformer_blocks.parameters():
        assert parameter.untyped_storage().data_ptr() in on_host
    assert len(on_host) == 10
    run_block, order = engine.network.run_block, list[int]()

    def watch(video, text, weights, *rest):
        for stream in (blocks, norms):
            assert len(list_storages(stream.copies[0].nbytes, collect=False) - on_host) <= 2
        slot = weights.qkv.weight.untyped_storage().data_ptr()
        assert slot not in on_host and weights.down.weight.untyped_storage().data_ptr() == slot
        order.extend(k for k in range(5) if torch.equal(blocks.copies[k].weights.up.weight, weights.up.weight))
        return run_block(video, text, weights, *rest)

    engine.network.run_block = watch
    engine.invert(torch.randn(1, 2, 8, 4, 6))
    assert order and order == [0, 1, 2, 3, 4] * (len(order) // 5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("offload", PARKING)
@pytest.mark.parametrize("call", [0, 1, 4, 5, 9])
def test_a_run_after_one_that_failed(offload, call, deep_model):
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    request = EditRequest("a red circle", "", None, 2.0)

    def run(engine):
        inversion = engine.invert(latents)
        return inversion.levels, engine.decode(engine.edit(inversion, request))

    wanted = run(load(deep_model, "none", editor="KVInjection"))
    engine = load(deep_model, offload, editor="KVInjection")
    run_block, calls = engine.network.run_block, []

    def fail(*arguments):
        calls.append(0)
        if len(calls) == call + 1:
            raise Stop
        return run_block(*arguments)

    engine.network.run_block = fail
    with pytest.raises(Stop) as _held:  # keeps the frames of the pass that failed alive
        run(engine)
    engine.network.run_block = run_block
    assert all(map(torch.equal, run(engine), wanted))


@pytest.mark.parametrize("offload", PARKING)
def test_compiled_blocks_take_such_weights(offload, tiny_model):
    torch._dynamo.reset()
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    levels = [load(tiny_model, one, compile=True).invert(latents).levels for one in ("none", offload)]
    assert torch.equal(*levels)


@pytest.mark.parametrize("offload", PARKING)
def test_a_pipeline_wants_all_weights_in_place(offload, tiny_model):
    module = make_module(tiny_model, offload)
    module.load(CPU)
    with pytest.raises(ValueError, match=f"^offload: must be none for a pipeline.*, got '{offload}'$"):
        _ = module.pipeline
    with pytest.raises(ValueError, match=r"^offload: a model loaded for cpu .* cannot move"):
        module.load("meta")


def test_on_the_command_line(carphone, tiny_model, tmp_path):
    words = ["edit", str(carphone), "--output", str(tmp_path), "--model", str(tiny_model), "--steps", "1", "--quiet"]
    words += ["--prompt", "a red circle", "--num-frames", "5", "--height", "16", "--width", "24"]
    assert main([*words, "--offload", "blocks"]) == 0
    (result,) = tmp_path.glob("*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["settings"]["runtime"]["offload"] == "blocks"
    assert main([*words, "--offload", "little"]) == 2


@pytest.mark.gpu
def test_peak_memory_and_bytes_on_the_device(tmp_path):
    wide = {"num_attention_heads": 16, "attention_head_dim": 64, "num_layers": 12, "time_embed_dim": 256}
    model = write_random_tiny(tmp_path / "wide", transformer=wide)
    clips = [make_clip("a", size=(9, 3, 64, 64)), make_clip("bb", "a red square", size=(9, 3, 64, 64))]
    results = {
        offload: predict(make_module(model, offload, save_trajectory=True), *clips, accelerator="gpu")
        for offload in ("none", *PARKING)
    }
    for offload in PARKING:
        check_same_bytes(results[offload], results["none"])
    peaks = {offload: found[-1].peak_gib for offload, found in results.items()}
    weights = sum(path.stat().st_size for path in (model / "transformer").glob("*.safetensors")) / 2 / 2**30  # bfloat16
    # Half of what could be gone, for the allocator's rounding.
    assert peaks["model"]["decode"] < peaks["none"]["decode"] - weights / 2
    assert peaks["blocks"]["decode"] < peaks["none"]["decode"] - weights / 2
    assert peaks["blocks"]["invert"] < peaks["none"]["invert"] - weights / 2


def test_adapters_that_are_not_fused_are_refused_where_blocks_are_copied(tiny_model):
    def load():
        DDIMInversionModule.from_pipeline(pipeline, runtime=Runtime(offload="blocks")).load("cpu")

    pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one")
    weight = pipeline.transformer.transformer_blocks[0].attn1.to_q.base_layer.weight
    before = weight.clone()
    with pytest.raises(ValueError, match=r"^offload: .*adapters.*, got 'blocks'"):
        load()
    assert torch.equal(weight, before)
    pipeline.transformer.fuse_lora()
    load()
    assert not torch.equal(weight, before)


def test_norms_of_streamed_blocks_travel_once_a_timestep_and_not_once_a_stage(tiny_model):
    engine = load(tiny_model, "blocks")
    engine.start_stage()
    made = engine.network.get_modulation(500)
    engine.start_stage()
    assert engine.network.get_modulation(500) is made
