"""Pairs under a real Trainer: other people's tables, latents encoded once, bad clips, several processes, resuming."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ddim_lightning.data.batches import Batches
from ddim_lightning.data.video import read_clip, write_video
from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.vae import encode_video
from ddim_lightning.pair_datamodule import PairDataModule

LIMITS = VideoLimits(num_frames=9, height=32, width=48, multiple=16, temporal=4)


def write_clip(path, seed, *, num_frames=9, height=32, width=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = (num_frames, 3, height // 8, width // 8)
    frames = torch.randint(0, 256, small, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    write_video(path, frames.repeat_interleave(8, 2).repeat_interleave(8, 3), Fraction(8))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three sources with two edits each, the last in portrait, and a table of them."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["source_video,target_video,source_prompt,target_prompt"]
    for source in range(3):
        shape = {"height": 48, "width": 32} if source == 2 else {}
        write_clip(folder / f"s{source}.mp4", source, **shape)
        for edit in range(2):
            write_clip(folder / f"s{source}e{edit}.mp4", 10 * source + edit + 100, num_frames=10, **shape)
            rows.append(f"s{source}.mp4,s{source}e{edit}.mp4,source {source},edit {source}{edit}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder


class Recorder(LightningModule):
    """Keeps what it was given; asks for the length of the training as a schedule of the learning rate does."""

    video_limits = LIMITS

    def __init__(self, folder=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.folder = folder
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        if self.folder is not None:
            line = {"epoch": self.current_epoch, "prompts": batch["target_prompts"], "digest": digest(batch)}
            with (self.folder / f"rank{self.global_rank}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


def digest(batch):
    state = hashlib.sha256()
    for name, value in sorted(batch.items()):
        state.update(name.encode() + (value.numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()))
    return state.hexdigest()


def fit(module, data, *, ckpt_path=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False, "devices": 1} | options
    trainer = Trainer(accelerator="cpu", **quiet, **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


def make_data(folder, table="pairs.csv", **options):
    given = {name: options.pop(name) for name in set(options) & set(Batches.__dataclass_fields__)}
    return PairDataModule(folder / table, **{"num_workers": 0} | options, batches=Batches(**given))


def test_frames_come_with_all_their_targets_when_nothing_is_encoded(clips):
    module = fit(Recorder(), make_data(clips, batch_size=3, targets=2))
    (batch,) = module.seen
    assert batch["source_frames"].shape == (3, 9, 3, 32, 48) and batch["target_frames"].shape == (6, 9, 3, 32, 48)
    assert batch["reads"].tolist() == [0, 0, 1, 1, 2, 2] and batch["reads"].dtype == torch.int64
    for target, prompt, source in zip(batch["target_frames"], batch["target_prompts"], batch["reads"], strict=True):
        number, edit = prompt.removeprefix("edit ")
        assert batch["source_prompts"][source] == f"source {number}"
        assert torch.equal(target, read_clip(clips / f"s{number}e{edit}.mp4", limits=LIMITS)[0])
        assert torch.equal(batch["source_frames"][source], read_clip(clips / f"s{number}.mp4", limits=LIMITS)[0])


def test_latents_are_those_of_the_vae_and_encoded_once(tmp_path, clips, tiny_model):
    options = {"cache": str(tmp_path / "cache"), "vae": str(tiny_model / "vae"), "batch_size": 2, "targets": 2}
    options |= {"buckets": ((9, 32, 48), (9, 48, 32)), "val_share": 0.3}
    module = fit(Recorder(), make_data(clips, **options), max_epochs=2)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 9
    assert {batch["source"].shape[1:] for batch in [*module.seen, *module.validated]} == {
        (3, 8, 8, 12),
        (3, 8, 12, 8),
    }
    trained = {prompt for batch in module.seen for prompt in batch["source_prompts"]}
    (validated,) = {prompt for batch in module.validated for prompt in batch["source_prompts"]}
    assert len(trained) == 2 and validated not in trained

    vae = AutoencoderKLCogVideoX.from_pretrained(tiny_model / "vae")
    batch = module.validated[0]
    height, width = (48, 32) if validated == "source 2" else (32, 48)
    frames, _, _ = read_clip(clips / f"s{validated[-1]}.mp4", limits=LIMITS, height=height, width=width)
    with torch.no_grad():
        torch.testing.assert_close(batch["source"], encode_video(vae, frames[None]), rtol=5e-3, atol=5e-3)
    assert torch.equal(module.validated[1]["target"], batch["target"])
    drawn = [
        source
        for batch in module.seen
        for source, prompt in zip(batch["source"], batch["source_prompts"], strict=True)
        if prompt == min(trained)
    ]
    assert len(drawn) == 2 and not torch.equal(*drawn)  # each epoch draws anew

    again = fit(Recorder(), make_data(clips, **options), max_epochs=2)
    assert list(map(digest, again.seen)) == list(map(digest, module.seen))
    assert {file: file.stat().st_mtime_ns for file in files} == files

    damaged, *_ = files
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=rf"^cache: {damaged} is damaged"):
        mended = fit(Recorder(), make_data(clips, **options), max_epochs=2)
    assert list(map(digest, mended.seen)) == list(map(digest, module.seen))


def test_the_vae_is_that_of_the_module_that_trains(tmp_path, clips, tiny_model):
    module = Recorder()
    with pytest.raises(ValueError, match=r"^vae: must name a folder .* under Recorder$"):
        fit(module, make_data(clips, cache=str(tmp_path)))
    module.vae = AutoencoderKLCogVideoX.from_pretrained(tiny_model / "vae").requires_grad_(False)
    fit(module, make_data(clips, cache=str(tmp_path)))
    assert module.seen[0]["source"].shape == (1, 3, 8, 8, 12)


SENORITA = [
    {
        "source_video_path": "./obj_removal_videos_upload/60/0a.mp4",
        "target_video_path": "./obj_removal_videos_upload/60/0a_edit.mp4",
        "instruction": "Remove dog",
        "enhanced_instruction": "Remove the dog that lies on the beach.",
    }
]
DITTO = [
    {
        "source_path": "source/0a.mp4",
        "instruction": "Make it a watercolor painting.",
        "edited_path": "global_style1/0a.mp4",
    }
]
INSVIE = (
    "video,source_caption,instruction,edited_caption,edited_folder\n0a.mp4,a dog,make it a cat,a cat on sand,edited_2\n"
)
SETS = {
    "Señorita-2M": (
        ("removal.json", json.dumps(SENORITA), "."),
        ("obj_removal_videos_upload/60/0a.mp4", "obj_removal_videos_upload/60/0a_edit.mp4"),
        {
            "source_video": "source_video_path",
            "target_video": "target_video_path",
            "instruction": "enhanced_instruction",
        },
        ("", "Remove the dog that lies on the beach."),
    ),
    "InsViE-1M": (
        ("train.csv", INSVIE, "."),
        ("source/0a.mp4", "edited_2/0a.mp4"),
        {
            "source_video": "source/{video}",
            "target_video": "{edited_folder}/{video}",
            "source_prompt": "source_caption",
            "target_prompt": "edited_caption",
        },
        ("a dog", "a cat on sand"),
    ),
    "Ditto-1M": (
        ("training_metadata/global_style1.json", json.dumps(DITTO), "videos"),
        ("videos/source/0a.mp4", "videos/global_style1/0a.mp4"),
        {"source_video": "source_path", "target_video": "edited_path", "instruction": "instruction"},
        ("", "Make it a watercolor painting."),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_public_sets_are_read_as_they_lie(tmp_path, name):
    (table, text, root), videos, columns, prompts = SETS[name]
    for seed, video in enumerate(videos):
        write_clip(tmp_path / video, seed)
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(text, encoding="utf-8")
    # As it comes from a YAML file.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairDataModule, "data")
    config = {"pairs": str(tmp_path / table), "root": str(tmp_path / root), "columns": columns, "num_workers": 0}
    config["batches"] = {"batch_size": 1, "buckets": [[9, 32, 48]]}
    data = parser.instantiate(parser.parse_object({"data": config})).data
    (batch,) = fit(Recorder(), data).seen
    assert (*batch["source_prompts"], *batch["target_prompts"]) == prompts
    for side, video in zip(("source_frames", "target_frames"), videos, strict=True):
        assert torch.equal(batch[side][0], read_clip(tmp_path / video, limits=LIMITS)[0])


def test_a_bad_clip_loses_nothing_of_the_others(tmp_path, clips, tiny_model):
    good = (clips / "s0.mp4").read_bytes()
    for name, content in {"ok.mp4": good, "torn.mp4": good[: len(good) // 2], "text.mp4": b"no video"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "edit.mp4").write_bytes((clips / "s0e0.mp4").read_bytes())
    write_clip(tmp_path / "short.mp4", 7, num_frames=5)
    targets = ["edit.mp4", "torn.mp4", "text.mp4", "short.mp4"]
    rows = [f"ok.mp4,{target},to {target}" for target in targets]
    (tmp_path / "pairs.csv").write_text("\n".join(["source_video,target_video,instruction", *rows]))
    latents = {"cache": str(tmp_path / "cache"), "vae": str(tiny_model / "vae")}
    for options in ({}, latents):
        with pytest.warns(UserWarning, match="left out") as told:
            module = fit(Recorder(), make_data(tmp_path, **options, targets=4))
        lines = [str(one.message) for one in told if "left out" in str(one.message)]
        assert [line.partition(":")[0][-5:] for line in lines] == ["row 3", "row 4", "row 5"]
        assert [batch["target_prompts"] for batch in module.seen] == [["to edit.mp4"]]
        with pytest.raises(ValueError, match="row 3: "):
            fit(Recorder(), make_data(tmp_path, **options, on_error="raise"))
    (tmp_path / "pairs.csv").write_text("\n".join(["source_video,target_video,instruction", *rows[2:]]))
    with pytest.raises(ValueError, match=r"^no clip can be used, 2 were tried; .*row 2: .*text\.mp4"):
        fit(Recorder(), make_data(tmp_path))


def test_a_copy_of_what_trains_does_not_validate(tmp_path, clips, tiny_model):
    for name, origin in (("a", "s0"), ("b", "s0e0"), ("copy", "s0"), ("c", "s1"), ("d", "s1e0")):
        (tmp_path / f"{name}.mp4").write_bytes((clips / f"{origin}.mp4").read_bytes())
    rows = ["a.mp4,b.mp4,one,train", "copy.mp4,d.mp4,two,val", "c.mp4,d.mp4,three,val"]
    (tmp_path / "pairs.csv").write_text("\n".join(["source_video,target_video,instruction,split", *rows]))
    data = make_data(tmp_path, cache=str(tmp_path / "cache"), vae=str(tiny_model / "vae"))
    with pytest.warns(UserWarning, match="row 3: left out: a copy"):
        module = fit(Recorder(), data)
    assert [batch["target_prompts"] for batch in module.validated] == [["three"]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"targets": 0}, "targets"),
        ({"num_workers": -1}, "num_workers"),
        ({"fit": "cover"}, "fit"),
        ({"stride": 0.5}, "stride"),
        ({"columns": {"source": "a"}}, "columns"),
    ],
)
def test_wrong_arguments_are_found_at_once(clips, options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        make_data(clips, **options)


@pytest.mark.parametrize(("num_workers", "stop"), [(0, 4), (2, 4), (0, 3), (0, 6)])
def test_a_training_goes_on_exactly_where_it_stopped(tmp_path, clips, num_workers, stop):
    """At batch 4 in the middle of the second epoch, and at the end of the first and of the second."""
    options = {"num_workers": num_workers, "batch_size": 1, "targets": 1}
    whole = fit(Recorder(), make_data(clips, **options), max_epochs=3)
    assert len(whole.seen) == 9
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    fit(
        Recorder(),
        make_data(clips, **options),
        max_epochs=3,
        max_steps=stop,
        callbacks=[keep],
        enable_checkpointing=True,
    )
    resumed = fit(Recorder(), make_data(clips, **options), max_epochs=3, ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert list(map(digest, resumed.seen)) == list(map(digest, whole.seen[stop:]))


@pytest.mark.slow
def test_two_processes_encode_and_train_on_shares_of_one(tmp_path, clips, tiny_model):
    seen, files = {}, {}
    for count, strategy in ((1, "auto"), (2, "ddp_fork")):
        folder = tmp_path / str(count)
        folder.mkdir()
        cache = folder / "cache"
        data = make_data(clips, targets=2, cache=str(cache), vae=str(tiny_model / "vae"))
        fit(Recorder(folder), data, devices=count, strategy=strategy, max_epochs=2)
        files[count] = {file.name: file.read_bytes() for file in cache.rglob("*.safetensors")}
        seen[count] = [
            [json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.glob("rank*"))
        ]
    assert files[1] == files[2] and len(files[1]) == 9
    (alone,), (first, second) = seen[1], seen[2]
    assert len(alone) == 6 and len(first) == len(second) == 2  # of three batches an epoch one is left over
    for epoch in range(2):
        expected = [one["digest"] for one in alone if one["epoch"] == epoch]
        assert [[one["digest"] for one in rank if one["epoch"] == epoch] for rank in (first, second)] == [
            expected[:1],
            expected[1:2],
        ]


@pytest.mark.slow
def test_encoding_goes_on_after_a_kill(tmp_path, clips, tiny_model):
    program = (
        "import sys; from ddim_lightning import Batches, PairDataModule; from ddim_lightning.types import VideoLimits\n"
        "table, cache, vae = sys.argv[1:]\n"
        "data = PairDataModule(table, num_workers=0, batches=Batches(cache=cache, vae=vae, buckets=((9, 32, 48),)))\n"
        "data.setup('fit'); data.train_dataloader()\n"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", program, str(clips / "pairs.csv"), str(cache), str(tiny_model / "vae")]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    while process.poll() is None and not list(cache.rglob("*.safetensors")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors") if file.name[0] != "."}
    assert process.returncode == -signal.SIGKILL and 0 < len(before) < 9
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    after = {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors") if file.name[0] != "."}
    assert len(after) == 9 and {file: after[file] for file in before} == before
