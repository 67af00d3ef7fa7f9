"""What data modules of one's own yield: every common form, in every precision of a Trainer."""

from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, VideoDataModule, VideoWriter
from ddim_lightning.callbacks.progress import ProgressPrinter
from ddim_lightning.data.video import write_video
from ddim_lightning.writer import read_results
from tests import modules

QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
PROMPTS = ("a red circle", "a blue cross")
PRECISIONS = ("32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")


def make_module(model, **options):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "editor": "Denoise", "seed": 5}
    return modules.make_module(str(model), **settings | options)


def predict(module, data, accelerator="cpu", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(accelerator=accelerator, devices=1, **QUIET | options).predict(module, data)


def flatten(predictions):
    return [result for one in predictions for result in (one if isinstance(one, list) else [one])]


class Foreign(LightningDataModule):
    """A data module that lists no prompts and has nothing of ours."""

    def __init__(self, *loaders):
        super().__init__()
        self.loaders = loaders

    def predict_dataloader(self):
        return list(self.loaders) if len(self.loaders) > 1 else self.loaders[0]


def load(items, **options):
    return DataLoader(items, **{"batch_size": 2} | options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two clips as files, and how our data module is asked for them."""
    folder = tmp_path_factory.mktemp("files")
    for k in range(2):
        frames = torch.randint(0, 256, (9, 3, 64, 64), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        write_video(folder / f"clip-{k}.mp4", frames, Fraction(8))
    return folder


@pytest.fixture(scope="module")
def wanted(files, tiny_model):
    """What `VideoDataModule` leads to, in float32; each clip with its own prompt."""
    (files / "clips.jsonl").write_text(
        "".join(f'{{"video": "clip-{k}.mp4", "prompts": ["{PROMPTS[k]}"], "num_frames": 5}}\n' for k in range(2))
    )
    data = VideoDataModule(files / "clips.jsonl", height=16, width=24, num_workers=0)
    return predict(make_module(tiny_model), data)


@pytest.fixture(scope="module")
def samples(wanted):
    """The same clips as samples of a data set of one's own."""
    return [
        {"video": result.clip.frames, "prompt": prompt, "name": result.clip.id, "fps": 8.0}
        for result, prompt in zip(wanted, PROMPTS, strict=True)
    ]


def make_clips(samples):
    return [Clip(s["name"], s["video"].clone(), prompts=(s["prompt"],)) for s in samples]


def as_floats(sample):
    return sample | {"video": sample["video"] / 255.0}


def listed(sample):
    return {"frames": sample["video"], "prompts": [sample["prompt"]], "id": sample["name"]}


FORMS = {
    "clip": lambda samples: load(make_clips(samples), batch_size=None),
    "mapping": lambda samples: load(samples, batch_size=None),
    "collated mapping": load,
    "collated floats": lambda samples: load([as_floats(s) for s in samples]),
    "collated lists of prompts": lambda samples: load([listed(s) for s in samples]),
    "list of clips": lambda samples: load(make_clips(samples), collate_fn=list),
    "list of mappings": lambda samples: load(samples, collate_fn=list),
    "pairs": lambda samples: load([(s["video"], s["prompt"]) for s in samples]),
    "tensors": lambda samples: load([s["video"] for s in samples]),
}
NAMELESS = ("pairs", "tensors")


def check_same(ours, theirs):
    """The same bytes for the same clip; prompts that did not come along are not edited."""
    assert [result.status for result in ours] == ["done"] * len(theirs)
    for result, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(result.reconstruction, wanted.reconstruction)
        assert torch.equal(result.clip.frames, wanted.clip.frames)
        assert result.metrics["reconstruction"] == wanted.metrics["reconstruction"]
        for edit, other in zip(result.edits, wanted.edits, strict=bool(result.edits)):
            assert edit.prompt == other.prompt and torch.equal(edit.latents, other.latents)


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_gives_what_our_own_data_module_gives(form, tiny_model, samples, wanted):
    predictions = predict(make_module(tiny_model), Foreign(FORMS[form](samples)))
    ours = flatten(predictions)
    assert [isinstance(one, list) for one in predictions] == ([False] * 2 if form in ("clip", "mapping") else [True])
    check_same(ours, wanted)
    assert [len(result.edits) for result in ours] == ([0, 0] if form == "tensors" else [1, 1])
    names = [f"rank-0-batch-0-clip-{k}" for k in range(2)] if form in NAMELESS else ["clip-0", "clip-1"]
    assert [result.clip.id for result in ours] == names
    assert ([result.seed for result in ours] == [result.seed for result in wanted]) == (form not in NAMELESS)


def encode(model, samples):
    module = make_module(model)
    module.load("cpu")
    with torch.inference_mode():
        return [module.engine.encode(sample["video"])[0].clone() for sample in samples]


def test_latents_are_not_encoded_again(tiny_model, samples, wanted):
    latents = encode(tiny_model, samples)
    bare = [{"latents": one, "prompt": s["prompt"], "name": s["name"]} for one, s in zip(latents, samples, strict=True)]
    alone = flatten(predict(make_module(tiny_model), Foreign(load(bare))))
    both = [one | {"video": s["video"]} for one, s in zip(bare, samples, strict=True)]
    check_same(flatten(predict(make_module(tiny_model), Foreign(load(both)))), wanted)
    for result, other in zip(alone, wanted, strict=True):
        assert result.status == "done" and any(said.startswith("latents: ") for said in result.warnings)
        assert torch.equal(result.edits[0].latents, other.edits[0].latents)
        assert torch.equal(result.reconstruction, other.reconstruction)
        # The source is what the VAE decodes, and what the reconstruction is measured against.
        assert torch.equal(result.clip.frames, other.vae_round_trip)
        assert result.clip.frames.device.type == "cpu" and result.clip.latents is not None
        assert result.fingerprint["clip"] != other.fingerprint["clip"]


def test_several_loaders_have_ids_of_their_own(tiny_model, samples, tmp_path):
    tensors = [sample["video"] for sample in samples]
    writer = VideoWriter(str(tmp_path), sheets=False)
    data = Foreign(load(tensors), load(tensors[:1], batch_size=None))
    first, second = predict(make_module(tiny_model, reconstruct=False), data, callbacks=[writer])
    assert (len(first), len(first[0]), len(second)) == (1, 2, 1)
    ids = ["rank-0-batch-0-clip-0", "rank-0-batch-0-clip-1", "rank-0-loader-1-batch-0"]
    assert [record["id"] for record in read_results(tmp_path)] == ids
    assert all((tmp_path / name / "source.mp4").is_file() for name in ids)


def test_one_bad_clip_of_a_batch_loses_nothing_of_the_others(tiny_model, samples, wanted, tmp_path):
    broken = [samples[0], samples[0] | {"name": "dark", "mask": torch.zeros(5, 16, 24)}, 7, samples[1]]
    for _ in range(2):
        writer = VideoWriter(str(tmp_path), sheets=False)
        (results,) = predict(
            make_module(tiny_model), Foreign(load(broken, batch_size=4, collate_fn=list)), callbacks=[writer]
        )
        assert [result.clip.id for result in results] == ["clip-0", "dark", "rank-0-batch-0-clip-2", "clip-1"]
        assert [result.status == "skipped" for result in results] == [False, True, True, False]
        assert results[1].reason.startswith("ValueError: mask: ") and "int" in results[2].reason
        assert (writer.num_clips, len(read_results(tmp_path))) == (4, 4)
    assert writer.num_finished == 2  # the second run found them
    with pytest.raises(TypeError, match=r"^batch: must be a Clip, a mapping"):
        predict(make_module(tiny_model, on_error="raise"), Foreign(load([7], collate_fn=list)))


def test_progress_counts_clips_and_not_batches(tiny_model, samples):
    class Ticks:
        shown = ()

        def show(self, tick):
            self.shown += (tick,)

        def close(self):
            pass

    class Watch(ProgressPrinter):
        def on_predict_start(self, trainer, pl_module):
            super().on_predict_start(trainer, pl_module)
            self._view.close()
            self._view = self.ticks = Ticks()

    watch = Watch()
    data = Foreign(load([s["video"] for s in samples]), load([samples[0]["video"]]))
    predict(make_module(tiny_model, reconstruct=False), data, callbacks=[watch])
    numbers = [(tick.clip_number, tick.num_clips) for tick in watch.ticks.shown]
    assert list(dict.fromkeys(numbers)) == [(1, 4), (2, 4), (3, 3)]


DTYPES = {"16": "float16", "bf16": "bfloat16", "32": "float32"}
LOSS = {"float32": 0.0, "float16": 0.02, "bfloat16": 0.1}
"""Largest relative L2 distance of an edit from that in float32, on the random tiny model."""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_precision_does_all_clips(precision, tiny_model, samples, wanted, caplog):
    module = make_module(tiny_model)
    with caplog.at_level("INFO"):
        ours = flatten(predict(module, Foreign(load([as_floats(s) for s in samples])), precision=precision))
    # Lightning takes bf16-mixed where a CPU cannot do 16-mixed.
    dtype = "bfloat16" if precision == "16-mixed" else DTYPES[precision.partition("-")[0]]
    assert [result.status for result in ours] == ["done", "done"]
    assert module.transformer.dtype == getattr(torch, dtype)
    assert (dtype in caplog.text) == (dtype != "float32")
    for result, exact in zip(ours, wanted, strict=True):
        assert torch.equal(result.clip.frames, exact.clip.frames)
        edit, other = result.edits[0].latents, exact.edits[0].latents
        moved = float((edit - other).norm() / other.norm())
        assert moved == 0.0 if dtype == "float32" else 0.0 < moved <= LOSS[dtype]


def test_a_dtype_that_mixed_precision_does_not_change_says_so(tiny_model, samples, wanted, caplog):
    module = make_module(tiny_model, dtype="float32")
    with caplog.at_level("INFO"):
        check_same(flatten(predict(module, Foreign(load(samples)), precision="bf16-mixed")), wanted)
    assert "no effect" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_latents_of_a_clip_pass_half_precision(tiny_model, samples):
    """Lightning rounds them to it before the module sees them."""
    clip = make_clips(samples)[0]
    clip.latents = encode(tiny_model, samples)[0][None]
    (result,) = predict(make_module(tiny_model), Foreign(load([clip], batch_size=None)), precision="bf16-true")
    assert (result.status, result.reason) == ("done", None)
    assert result.clip.latents.dtype == torch.float32


@pytest.mark.parametrize("forward", ["fused", "diffusers"])
def test_autocast_of_ones_own_changes_nothing(forward, tiny_model, samples, wanted):
    module = make_module(tiny_model, forward=forward)
    module.load("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = module.predict_step(samples, 0)
        module.engine.prompts.clear_cache()
        with torch.autocast("cpu", torch.bfloat16):
            ours = module.predict_step(samples, 0)
            assert torch.is_autocast_enabled("cpu")
    check_same(ours, plain)
    if forward == "fused":
        check_same(ours, wanted)


@pytest.mark.parametrize("forward", ["fused", "diffusers"])
@pytest.mark.filterwarnings("ignore")
def test_training_under_mixed_precision_keeps_float32_weights(forward, tiny_model, samples, wanted, caplog):
    batch = {"frames": torch.stack([s["video"] for s in samples]), "prompts": list(PROMPTS)}
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        training = {"parts": ["transformer"], "learning_rate": 1e-3}
        module = make_module(tiny_model, forward=forward, training=training)
        trainer = Trainer(accelerator="cpu", devices=1, max_steps=2, precision=precision, **QUIET)
        with caplog.at_level("INFO"):
            trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
        assert {weight.dtype for weight in module.parameters()} == {torch.float32}
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in module.parameters())
        losses[precision] = float(trainer.callback_metrics["train/loss"])
    assert losses["32-true"] != losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert "under autocast" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_on_a_gpu(form, tiny_model, samples):
    theirs = predict(make_module(tiny_model), Foreign(FORMS["clip"](samples)), accelerator="gpu")
    ours = flatten(predict(make_module(tiny_model), Foreign(FORMS[form](samples)), accelerator="gpu"))
    check_same(ours, theirs)
    assert all(result.clip.frames.device.type == "cpu" for result in ours)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_on_a_gpu(precision, tiny_model, samples):
    exact = predict(make_module(tiny_model, dtype="float32"), Foreign(FORMS["clip"](samples)), accelerator="gpu")
    module = make_module(tiny_model)
    ours = predict(module, Foreign(FORMS["clip"](samples)), accelerator="gpu", precision=precision)
    dtype = "bfloat16" if precision == "32-true" else DTYPES[precision.partition("-")[0]]
    assert module.transformer.dtype == getattr(torch, dtype)
    for result, other in zip(ours, exact, strict=True):
        assert result.status == "done"
        edit, wanted = result.edits[0].latents, other.edits[0].latents
        assert float((edit - wanted).norm() / wanted.norm()) <= LOSS[dtype]
