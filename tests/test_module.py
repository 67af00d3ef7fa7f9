"""The Lightning face under a real Trainer."""

from __future__ import annotations

import re
import warnings
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, DDIMInverseScheduler
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule, KVInjection, UniInv, UnreadableClip, VideoWriter
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.writer import read_results
from tests import modules

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def make_clip(name, **fields):
    generator = torch.Generator().manual_seed(len(name))
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=generator, dtype=torch.uint8)
    return Clip(name, frames, **({"prompts": ("a red circle",)} | fields))


class Clips(LightningDataModule):
    def __init__(self, clips):
        super().__init__()
        self.clips = clips

    def predict_dataloader(self):
        return DataLoader(self.clips, batch_size=None)


class ListedClips(Clips):
    def all_prompts(self):
        return [prompt for clip in self.clips for prompt in clip.prompts]


def make_module(model, **options):
    return modules.make_module(str(model), **({"num_inference_steps": 2} | options))


def predict(module, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**QUIET | options).predict(module, data)


def test_the_real_components_are_at_hand(tiny_model):
    module = make_module(tiny_model)
    predict(module, Clips([make_clip("a")]))
    assert type(module.components.scheduler) is CogVideoXDDIMScheduler
    assert type(module.components.inverse_scheduler) is DDIMInverseScheduler
    assert type(module.pipeline) is CogVideoXPipeline
    assert module.pipeline.transformer is module.components.transformer
    assert module.video_limits == module.components.limits


def test_frozen_weights_stay_out_of_lightnings_hands(tiny_model):
    module = make_module(tiny_model)
    predict(module, Clips([make_clip("a")]))
    assert list(module.parameters()) == [] and module.state_dict() == {}
    assert not any(p.requires_grad for p in module.components.transformer.parameters())


def test_text_encoder_is_released_when_the_data_lists_its_prompts(tiny_model):
    module = make_module(tiny_model)
    listed = [make_clip("a"), make_clip("bb", prompts=("a square", "a cross"))]
    results = predict(module, ListedClips(listed))
    assert [result.status for result in results] == ["done", "done"]
    assert module.engine.prompts.text_encoder is None
    # Another run brings other prompts: it comes back.
    (result,) = predict(module, ListedClips([make_clip("c", prompts=("a triangle",))]))
    assert result.status == "done" and module.engine.prompts.text_encoder is None
    assert module.pipeline.text_encoder is not None


def test_a_run_under_known_prompts_loads_no_text_encoder(tiny_model, tmp_path, monkeypatch):
    def run(**settings):
        clips = [make_clip("a"), make_clip("bb", prompts=("a square", "a cross"))]
        return predict(make_module(tiny_model, **settings), ListedClips(clips))

    first = run(prompt_cache=str(tmp_path))
    loaded = []
    real = load_text_encoder

    def load(model, **where):
        loaded.append(model.model)
        return real(model, **where)

    monkeypatch.setattr("ddim_lightning.engine.prompts.load_text_encoder", load)
    module = make_module(tiny_model, prompt_cache=str(tmp_path))
    second = predict(module, ListedClips([make_clip("a"), make_clip("bb", prompts=("a square", "a cross"))]))
    assert loaded == [] and module.engine.prompts.text_encoder is None
    plain_run = run()
    loaded.clear()
    for plain, one, other in zip(plain_run, first, second, strict=True):
        for wanted, ours, again in zip(plain.edits, one.edits, other.edits, strict=True):
            assert torch.equal(wanted.latents, ours.latents) and torch.equal(ours.latents, again.latents)
    # A new prompt loads it, for as long as it takes.
    (result,) = predict(module, ListedClips([make_clip("c", prompts=("a triangle",))]))
    assert result.status == "done" and loaded == [str(tiny_model)] and module.engine.prompts.text_encoder is None


def test_the_text_encoder_is_gone_before_the_rest_of_the_model_is_loaded(tiny_model, monkeypatch):
    seen = []

    def load_text(model, **where):
        loaded = load_text_encoder(model, **where)
        seen.append(weakref.ref(loaded))
        return loaded

    def load_rest(model, **where):
        seen.append(seen[-1]() is None)
        return load_components(model, **where)

    monkeypatch.setattr("ddim_lightning.engine.prompts.load_text_encoder", load_text)
    monkeypatch.setattr("ddim_lightning.engine.build.load_components", load_rest)
    module = make_module(tiny_model)
    (result,) = predict(module, ListedClips([make_clip("a")]))
    assert result.status == "done" and len(seen) == 2 and seen[1] is True


def test_text_encoder_stays_for_foreign_data(tiny_model, caplog):
    module = make_module(tiny_model)
    with caplog.at_level("INFO"):
        predict(module, Clips([make_clip("a")]))
    assert module.engine.prompts.text_encoder is not None
    assert "the text encoder stays in memory" in caplog.text


def test_one_bad_clip_loses_nothing_of_the_others(tiny_model):
    wrong_size = make_clip("bb")
    wrong_size.frames = wrong_size.frames[..., :20]
    bad = UnreadableClip("ccc", "ccc.mp4", "not a video")
    results = predict(make_module(tiny_model), Clips([make_clip("a"), wrong_size, bad, make_clip("dddd")]))
    assert [(r.clip.id, r.status) for r in results] == [
        ("a", "done"),
        ("bb", "skipped"),
        ("ccc", "skipped"),
        ("dddd", "done"),
    ]
    assert results[1].reason == "ValueError: frames: height and width must be multiples of 8, got 16 x 20"
    assert results[2].reason == "not a video"


def test_who_writes_no_files_is_told_what_happened(tiny_model):
    clips = Clips([make_clip("a", negative_prompt="a blue square"), UnreadableClip("b", "b.mp4", "not a video")])
    with pytest.warns(UserWarning, match="clip ") as told:
        Trainer(**QUIET).predict(make_module(tiny_model, guidance_scale=1), clips)
    said = [str(warning.message) for warning in told]
    assert "clip b: skipped: not a video" in said
    assert any(one.startswith("clip a: negative_prompt: has no effect") for one in said)


@pytest.mark.parametrize("kind", ["bad", "wrong"])
def test_raising_instead_of_skipping(kind, tiny_model):
    clip = UnreadableClip("b", "b.mp4", "not a video") if kind == "bad" else make_clip("b")
    if kind == "wrong":
        clip.frames = clip.frames[:4]
    with pytest.raises(ValueError, match="not a video" if kind == "bad" else "count must be 4k"):
        predict(make_module(tiny_model, on_error="raise"), Clips([clip]))


def test_neighbors_and_order_change_no_byte(tiny_model):
    editor = KVInjection(initial="random")
    names = ("a", "bb", "ccc")
    forward = predict(make_module(tiny_model, editor=editor), ListedClips([make_clip(n) for n in names]))
    backward = predict(make_module(tiny_model, editor=editor), Clips([make_clip(n) for n in names[::-1]]))
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.clip.id == other.clip.id and one.seed == other.seed
        assert torch.equal(one.edits[0].latents, other.edits[0].latents)
        assert torch.equal(one.reconstruction, other.reconstruction)
    assert len({result.seed for result in forward}) == 3


def test_a_clips_own_seed_wins(tiny_model):
    (result,) = predict(make_module(tiny_model), Clips([make_clip("a", seed=42)]))
    assert result.seed == 42


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", "bfloat16"), ("16-true", "float16")])
def test_true_precision_is_the_dtype_of_the_weights_and_nothing_else(precision, dtype, tiny_model):
    (wanted,) = predict(make_module(tiny_model, dtype=dtype), Clips([make_clip("a")]))
    (result,) = predict(make_module(tiny_model), Clips([make_clip("a")]), precision=precision)
    assert result.settings["runtime"]["dtype"] == dtype
    assert torch.equal(wanted.edits[0].latents, result.edits[0].latents)
    assert wanted.metrics == result.metrics


def test_mixed_precision_rounds_and_does_nothing_worse(tiny_model):
    (exact,) = predict(make_module(tiny_model), Clips([make_clip("a")]))
    (result,) = predict(make_module(tiny_model), Clips([make_clip("a")]), precision="bf16-mixed")
    assert (result.status, result.reason) == ("done", None)
    moved = (result.edits[0].latents - exact.edits[0].latents).abs()
    assert 0 < moved.max() < 0.1 * exact.edits[0].latents.std()
    assert result.metrics["reconstruction"]["psnr"] == pytest.approx(exact.metrics["reconstruction"]["psnr"], abs=0.2)


@pytest.mark.parametrize(
    ("precision", "dtype", "message"),
    [
        ("64-true", "auto", "^precision: .*, got '64-true'"),
        ("bf16-true", "float32", "^dtype: must be auto or bfloat16 .*got 'float32'"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_by_name(precision, dtype, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        predict(make_module(tiny_model, dtype=dtype), Clips([make_clip("a")]), precision=precision)


FOREIGN = [7, {"caption": "a", "fps": 2}, {"frames": 1}, torch.zeros(3), "clip.mp4"]


def test_what_is_no_clip_is_skipped_with_what_it_is_and_its_neighbors_are_done(tiny_model):
    first, *skipped, last = predict(make_module(tiny_model), Clips([make_clip("a"), *FOREIGN, make_clip("bb")]))
    assert (first.status, last.status) == ("done", "done")
    assert [result.status for result in skipped] == ["skipped"] * len(FOREIGN)
    assert [result.clip.id for result in skipped] == [f"rank-0-batch-{i}" for i in range(1, 1 + len(FOREIGN))]
    said = [("batch", "int"), ("batch", "dict of caption, fps"), ("frames", "int"), ("video", "(3,)"), ("batch", "str")]
    for result, (field, kind) in zip(skipped, said, strict=True):
        assert result.reason.startswith(f"{field}: ")
        assert result.reason.endswith(f"got {kind}")


WRONG = [
    make_clip("a", fps=8.0),
    make_clip("a", source=Path("clip.mp4")),
    make_clip("a", prompts=None),
    make_clip("a", prompts=("a red circle", 1)),
    make_clip("a", selection={"start": 0}),
    replace(make_clip("a"), frames=None),
    UnreadableClip("a", Path("clip.mp4"), "gone"),
    replace(make_clip("a"), id=7),
    replace(make_clip("a"), id=None),
]


def test_a_clip_with_a_field_of_a_wrong_type_is_skipped_and_its_neighbors_are_done(tiny_model, tmp_path):
    for _ in range(2):  # what the first run lists is taken by the second one
        writer = VideoWriter(str(tmp_path), sheets=False)
        clips = Clips([make_clip("first"), *WRONG, make_clip("last")])
        first, *skipped, last = predict(make_module(tiny_model), clips, callbacks=[writer])
        assert {first.status, last.status} <= {"done", "finished"}
        assert [result.status for result in skipped] == ["skipped"] * len(WRONG)
        fields = ("fps", "source", "prompts", "prompts", "selection", "frames", "source", "id", "id")
        assert [result.reason.partition(":")[0] for result in skipped] == list(fields)
    assert {"first", "last", "a", "rank-0-batch-8"} <= {record["id"] for record in read_results(tmp_path)}


def test_what_is_no_clip_is_raised_where_errors_are_raised(tiny_model):
    module = make_module(tiny_model, on_error="raise")
    with pytest.raises(TypeError, match=r"^batch: must be a Clip.*dict of pixels"):
        predict(module, Clips([{"pixels": torch.zeros(1)}]))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompts": ("a \ud83d",)}, r"prompts: .*'a \\ud83d'"),
        ({"prompts": "a red circle"}, "prompts: must be a tuple"),
        ({"prompts": (7,)}, "prompts: .*got 7"),
        ({"source_prompt": "k\udce9"}, "source_prompt: "),
        ({"negative_prompt": None}, "negative_prompt: .*None"),
        ({"frames": torch.zeros(5, 3, 16, 24)}, "frames: must be uint8.*float32"),
        ({"frames": torch.zeros(16, 24, dtype=torch.uint8)}, "frames: must have shape"),
        ({"frames": None}, "NoneType"),
        ({"mask": "white"}, "str"),
        ({"first_frame": "red.png"}, "first_frame: .*str"),
        ({"first_frame": torch.zeros(3, 16, 24, dtype=torch.uint8)}, "first_frame: .*image-to-video.*I2V"),
    ],
)
def test_whatever_is_wrong_with_a_clip_it_alone_is_skipped(fields, reason, tiny_model):
    clip = make_clip("bad")
    for name, value in fields.items():
        setattr(clip, name, value)
    bad, good = predict(make_module(tiny_model), ListedClips([clip, make_clip("good")]))
    assert (bad.status, good.status) == ("skipped", "done")
    assert re.search(reason, bad.reason)


@pytest.mark.parametrize("editor", ["KVInjection", "Denoise", "FlowEdit"])
def test_an_edit_that_overflows_is_no_result(editor, tiny_model):
    for scale in (1e15, 1e30, 3e38):
        module = make_module(tiny_model, guidance_scale=scale, editor=editor)
        module.load("cpu")
        with pytest.warns(UserWarning, match="skipped: "):
            result = module.predict_step(make_clip("a"), 0)
        assert result.status == "skipped"
        assert re.search(rf"edit: values must stay finite.*guidance_scale {re.escape(f'{scale:g}')}", result.reason)


def test_network_in_bfloat16_on_request(tiny_model):
    module = make_module(tiny_model, dtype="bfloat16")
    (result,) = predict(module, Clips([make_clip("a")]))
    assert module.components.transformer.dtype == module.components.vae.dtype == torch.bfloat16
    assert result.edits[0].latents.dtype == torch.float32 and result.status == "done"


def test_hyperparameters_are_plain_and_build_the_same_module(tiny_model, tmp_path):
    module = make_module(tiny_model, inverter="DDIM", editor=KVInjection(layers=(1, 2), kv_scale=0.5), seed=3)
    trainer = Trainer(**QUIET)
    trainer.predict(module, Clips([make_clip("a")]))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    assert (tmp_path / "module.ckpt").stat().st_size < 10_000
    again = DDIMInversionModule.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert (again.inverter, again.editor, again.hparams) == (module.inverter, module.editor, module.hparams)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: must be an integer of at least 1, got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps: must be an integer of at least 1, got 2.5"),
        ({"guidance_scale": -1.0}, "guidance_scale: must be finite and not negative, got -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale: must be finite and not negative, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale: must be finite and not negative, got inf"),
        ({"compile": "fastest"}, "compile: must be true, false or one of default, .*, got 'fastest'"),
        ({"compile_cache": "graphs"}, "compile_cache: .* must be unset without compile or compile_vae, got 'graphs'"),
        ({"prompt_cache": __file__}, "prompt_cache: must be a folder, got the file '.*test_module.py'"),
        ({"inverter": ""}, "inverter: '' could not be found"),
        ({"editor": "Editor"}, "editor: must name a concrete subclass of Editor, got 'Editor'"),
        ({"dtype": "int8"}, "dtype: must be one of auto, bfloat16, float16, float32, got 'int8'"),
        ({"on_error": "ignore"}, "on_error: must be one of skip, raise, got 'ignore'"),
        (
            {"prompt_cache": "kept", "training": {"parts": ["text_encoder"]}},
            "prompt_cache: .* must be unset with training.parts of text_encoder, got 'kept'",
        ),
        ({"training": {"parts": ["vae"]}}, "training.parts: must be of transformer, text_encoder"),
        ({"training": {"caption_dropout": 2}}, "training.caption_dropout: must lie in 0 .. 1, got 2"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        modules.make_module("tiny", **options)


def test_compiled_blocks_agree_and_are_compiled_once_per_layout(tiny_model, tmp_path):
    # Five layouts: one row; a guided pair; and a pair with the source row where nothing is read, where it is, and in
    # the last layer, in which the source row has no queries.
    editor = KVInjection(steps=(1, 3), layers=(1, None), kv_scale=0.5)
    data = ListedClips([make_clip("a"), make_clip("bb", prompts=("a blue cross", "a square"))])
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "editor": editor}
    eager = predict(make_module(tiny_model, **settings), data)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = make_module(tiny_model, compile=True, compile_cache=str(tmp_path / "graphs"), **settings)
    compiled = predict(module, data)
    assert [path.suffix for path in (tmp_path / "graphs").iterdir()] == [".bin"]
    assert not any("_orig_mod" in key for key in module.components.transformer.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 5
    for one, other in zip(compiled, eager, strict=True):
        assert other.status == "done"
        for ours, theirs in zip(one.edits, other.edits, strict=True):
            assert float((ours.latents - theirs.latents).norm() / theirs.latents.norm()) <= 1e-4


class Latents(LightningDataModule):
    """Training batches of latents that depend on the step alone, as an endless stream that resumes should."""

    def train_dataloader(self):
        items = []
        for k in range(self.trainer.global_step, 6):
            latents = torch.randn(3, 2, 8, 4, 6, generator=torch.Generator().manual_seed(k))
            items.append({"latents": latents, "prompts": ["a red circle", "a square", ""]})
        return DataLoader(items, batch_size=None)

    def val_dataloader(self):
        frames = torch.randint(0, 256, (2, 5, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"frames": frames, "prompts": ["a red circle", "a cross"]}], batch_size=None)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *rest):
        self.values.append(float(outputs["loss"]))


def fit(module, *callbacks, **options):
    losses = Losses()
    settings = QUIET | {"max_steps": 6, "num_sanity_val_steps": 0, "callbacks": [losses, *callbacks]}
    trainer = Trainer(**settings | {"enable_checkpointing": bool(callbacks)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, Latents(), **options)
    return trainer, losses.values


def make_training(model, *parts):
    return make_module(model, training={"parts": parts, "learning_rate": 1e-2, "warmup_steps": 0})


def test_training_moves_what_trains_and_nothing_else(tiny_model):
    untrained = make_module(tiny_model)
    untrained.load("cpu")
    module = make_training(tiny_model, "transformer", "text_encoder")
    trainer, losses = fit(module)
    assert losses[-1] < losses[0]
    before, after = ({**vars(m.components), "text_encoder": m.engine.prompts.load()} for m in (untrained, module))
    for name in ("transformer", "text_encoder", "vae"):
        pairs = zip(before[name].parameters(), after[name].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) == (name != "vae")
    assert {key.split(".")[0] for key in module.state_dict()} == {"transformer", "text_encoder"}
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_training_is_reproducible_and_resumes_exactly(tiny_model, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    _, losses = fit(make_training(tiny_model, "transformer"), keep)
    _, again = fit(make_training(tiny_model, "transformer"))
    assert len(losses) == 6 and losses == again
    resumed = make_training(tiny_model, "transformer")
    _, rest = fit(resumed, ckpt_path=tmp_path / "step=3.ckpt")
    assert rest == losses[3:]
    loaded = DDIMInversionModule.load_from_checkpoint(tmp_path / "step=6.ckpt", weights_only=True)
    for ours, theirs in zip(loaded.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.components.transformer.proj_out.weight is loaded.transformer.proj_out.weight


def test_fit_without_saying_what_trains_is_refused(tiny_model):
    with pytest.raises(ValueError, match="training: must say what trains before fit, got None"):
        fit(make_module(tiny_model))


def test_one_module_serves_any_order_of_runs(tiny_model):
    module = make_training(tiny_model, "transformer")
    data = ListedClips([make_clip("a")])
    (before,) = predict(module, data)
    assert module.engine.prompts.text_encoder is None  # released, and needed again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**QUIET).validate(module, Latents(), verbose=False)
    with torch.inference_mode():
        module.engine.invert(torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0)))
    fit(module)
    (after,) = predict(module, data)
    assert before.status == after.status == "done"
    assert not torch.equal(before.edits[0].latents, after.edits[0].latents)


def test_a_trained_text_encoder_is_the_one_that_is_used(tiny_model):
    module = make_training(tiny_model, "text_encoder")
    data = ListedClips([make_clip("a")])
    (before,) = predict(module, data)
    assert module.engine.prompts.text_encoder is module.text_encoder
    fit(module)
    (after,) = predict(module, data)
    assert module.engine.prompts.text_encoder is module.text_encoder
    assert not torch.equal(before.edits[0].latents, after.edits[0].latents)
    torch.testing.assert_close(module.engine.prompts("a cross"), module.engine.prompts.encode_batch(["a cross"]))


def test_what_trains_is_float32_unless_asked_otherwise(tiny_model):
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        module = make_module(tiny_model, dtype=dtype, training={"parts": ["transformer"]})
        module.load(torch.device("cpu"))
        assert {p.dtype for p in module.parameters()} == {expected}


def test_accumulated_batches_draw_their_own_noise(tiny_model):
    class Same(Latents):
        def train_dataloader(self):
            latents = torch.randn(3, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
            return DataLoader([{"latents": latents, "prompts": ["", "a square", ""]}] * 2, batch_size=None)

    losses = Losses()
    settings = QUIET | {"max_steps": 1, "accumulate_grad_batches": 2, "callbacks": [losses], "limit_val_batches": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**settings).fit(make_training(tiny_model, "transformer"), Same())
    assert len(losses.values) == 2 and losses.values[0] != losses.values[1]


def test_options_that_do_not_fit_the_model_stop_the_run_before_it_works(tiny_model):
    module = make_module(tiny_model, editor=KVInjection(layers=(0, 9)))
    with pytest.raises(ValueError, match=r"editor\.layers: must end within the 3 that there are"):
        predict(module, ListedClips([make_clip("a")]))


def test_reasons_are_one_line(tiny_model, monkeypatch):
    module = make_module(tiny_model)
    module.load(torch.device("cpu"))

    def fail(*_):
        raise RuntimeError("out of memory\n  tried this\n  and that")

    module.components.transformer.patch_embed.register_forward_pre_hook(fail)
    (result,) = predict(module, ListedClips([make_clip("a", seed=5)]))
    assert (result.status, result.seed) == ("skipped", 5)
    assert result.reason == "RuntimeError: out of memory tried this and that"


def test_settings_describe_the_run(tiny_model):
    (result,) = predict(make_module(tiny_model), Clips([make_clip("a")]))
    assert (result.settings["runtime"]["dtype"], result.settings["device"]) == ("float32", "cpu")
    assert result.settings["inverter"] == {
        "class_path": "ddim_lightning.diffusion.inverters.uni_inv.UniInv",
        "init_args": asdict(UniInv(extrapolate=True, extra_evals=0.12)),
    }
    assert result.settings["schedule"]["num_inference_steps"] == 2


def test_what_lightning_moved_away_after_a_fit_is_brought_back_by_load(tiny_model):
    module = make_module(tiny_model, training={"parts": ["transformer"]})
    module.load("cpu")
    module.engine.prompts.device = torch.device("meta")  # as if the model had been loaded there
    with pytest.raises(RuntimeError, match=r"load\(device\)"):
        _ = module.engine
    module.load("cpu")
    assert module.engine.device.type == "cpu"


def test_without_a_trainer_loading_is_explicit(tiny_model):
    module = make_module(tiny_model)
    for name in ("engine", "components", "pipeline"):
        with pytest.raises(RuntimeError, match="load"):
            getattr(module, name)
    module.load("cpu")
    engine = module.engine
    module.load("cpu")  # loaded once
    assert module.engine is engine
