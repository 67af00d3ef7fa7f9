from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from ddim_lightning.data.batches import Batches
from ddim_lightning.data.video import read_clip, write_video
from ddim_lightning.datamodule import VideoDataModule
from ddim_lightning.engine.config import Training
from ddim_lightning.limits import VideoLimits
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import Clip

LIMITS = VideoLimits(num_frames=9, height=32, width=48, multiple=16, temporal=4)


class Recorder(LightningModule):
    """Leaves a file for every clip it sees, with the number of its frames; a second sight of one is an error."""

    video_limits = LIMITS

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def predict_step(self, batch, batch_idx):
        with (self.folder / batch.id).open("x") as file:
            if isinstance(batch, Clip):
                assert batch.frames.dtype == torch.uint8
                file.write(f"{self.global_rank} {len(batch.frames)} {int(batch.frames.sum())}")
            else:
                file.write(f"{self.global_rank} {batch.reason}")
        return batch.id


class Foreign(LightningModule):
    """A module that knows nothing of videos."""

    def predict_step(self, batch, batch_idx):
        return batch


class Sized(Foreign):
    """One that says what it takes."""

    video_limits = LIMITS


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips of 9 .. 13 frames of 40 x 64, and a text that calls itself one."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        frames = torch.randint(0, 256, (9 + i, 3, 5, 8), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
        write_video(folder / f"clip{i}.mp4", frames.repeat_interleave(8, 2).repeat_interleave(8, 3), Fraction(8))
    (folder / "broken.mp4").write_text("not a video")
    return folder


def make_trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **options)


def seen(folder):
    """By id, what was recorded, without the rank."""
    return {path.name: path.read_text().split(" ", 1)[1] for path in folder.iterdir()}


def test_every_clip_once_on_one_device(tmp_path, clips):
    data = VideoDataModule(str(clips))
    make_trainer(devices=1).predict(Recorder(tmp_path), data, return_predictions=False)
    record = seen(tmp_path)
    assert sorted(record) == ["broken", "clip0", "clip1", "clip2", "clip3", "clip4"]
    assert "is not a video that can be read" in record["broken"]
    for i in range(5):
        frames, _, _ = read_clip(clips / f"clip{i}.mp4", limits=LIMITS)
        assert record[f"clip{i}"] == f"9 {int(frames.sum())}"


@pytest.mark.parametrize("count", [5, 1])
def test_every_clip_once_on_two_devices_with_an_unmodified_trainer(tmp_path, clips, count):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    videos = [clips / f"clip{i}.mp4" for i in range(count)]
    make_trainer(devices=1).predict(Recorder(tmp_path / "one"), VideoDataModule(videos, num_workers=0))
    make_trainer(devices=2, strategy="ddp_fork").predict(
        Recorder(tmp_path / "two"), VideoDataModule(videos, num_workers=1), return_predictions=False
    )
    assert sorted(seen(tmp_path / "two")) == [f"clip{i}" for i in range(count)]
    assert seen(tmp_path / "two") == seen(tmp_path / "one")
    ranks = {path.name: int(path.read_text().split()[0]) for path in (tmp_path / "two").iterdir()}
    assert ranks == {f"clip{i}": i % 2 for i in range(count)}


def test_a_clip_reaches_the_module_whole_and_the_writer_with_its_index(clips):
    indices = []

    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
            indices.append(batch_indices)

    data = VideoDataModule(
        [clips / "clip3.mp4", clips / "clip1.mp4"], ["a", "b"], height=32, width=64, num_frames=8, stride=1.5
    )
    first, second = make_trainer(devices=1, callbacks=[Writer()]).predict(Foreign(), data)
    assert (first.id, first.prompts, first.fps, first.frames.shape) == (
        "clip3",
        ("a", "b"),
        Fraction(16, 3),
        (8, 3, 32, 64),
    )
    assert first.selection.stride == 1.5
    assert second.id == "clip1"
    assert indices == [[0], [1]]


def test_a_foreign_module_takes_every_frame(clips):
    data = VideoDataModule(clips / "clip3.mp4", height=30, width=50, num_workers=0)
    (clip,) = make_trainer(devices=1).predict(Foreign(), data)
    assert clip.frames.shape == (12, 3, 30, 50)  # 12 is no 4k + 1, and 30 x 50 no multiple of 16
    assert clip.warnings == ()


def test_a_foreign_module_needs_a_size(clips):
    message = r"^height and width must be given where the module has no `video_limits`, got None x 50$"
    with pytest.raises(ValueError, match=message):
        make_trainer(devices=1).predict(Foreign(), VideoDataModule(clips / "clip0.mp4", width=50))


def test_it_works_without_a_trainer(clips):
    data = VideoDataModule(clips / "clip0.mp4", height=32, width=48, num_workers=0)
    data.setup("predict")
    (clip,) = data.predict_dataloader()
    assert clip.id == "clip0"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("videos", "{0}/clip[34].mp4", ["clip3", "clip4"]),
        ("videos", '["{0}/clip4.mp4", "{0}/clip2.mp4"]', ["clip4", "clip2"]),
        ("prompts", "a dog, asleep", ("a dog, asleep",)),
        ("prompts", '["a dog", "a cat"]', ("a dog", "a cat")),
        ("stride", "2", 2),
        ("stride", "spread", "spread"),
    ],
)
def test_it_can_be_configured_from_the_command_line(clips, name, value, wanted):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VideoDataModule, "data")
    arguments = {"videos": str(clips / "clip0.mp4")} | {name: value.format(clips)}
    data = parser.instantiate(parser.parse_args([f"--data.{key}={text}" for key, text in arguments.items()])).data
    got = {
        "videos": [request.id for request in data.requests],
        "prompts": data.requests[0].prompts,
        "stride": data.stride,
    }
    assert got[name] == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 6}, r"^num_frames must be 4k \+ 1 and at least 5, got 6$"),
        ({"num_frames": "most"}, "^num_frames must be .*'all', got 'most'$"),
        ({"height": 40}, "^height must be a positive multiple of 16 pixels, got 40$"),
    ],
)
def test_what_the_model_cannot_take_stops_the_run_before_it_begins(tmp_path, clips, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(devices=1).predict(Recorder(tmp_path), VideoDataModule(clips, **settings))
    assert not list(tmp_path.iterdir())


def test_a_default_is_blamed_on_the_argument_and_a_cell_on_its_row(tmp_path, clips):
    path = tmp_path / "clips.csv"
    path.write_text(f"video,num_frames\n{clips}/clip0.mp4,\n{clips}/clip1.mp4,7\n")
    (tmp_path / "seen").mkdir()
    with pytest.raises(ValueError, match=r"^num_frames must be 4k \+ 1 and at least 5, got 8$"):
        make_trainer(devices=1).predict(Recorder(tmp_path / "seen"), VideoDataModule(path, num_frames=8))
    with pytest.raises(ValueError, match=r"^.*clips\.csv row 3: num_frames must be 4k \+ 1 and at least 5, got 7$"):
        make_trainer(devices=1).predict(Recorder(tmp_path / "seen"), VideoDataModule(path))


def test_one_mask_holds_for_all_clips_and_a_bad_one_stops_none(tmp_path, clips):
    Image.new("L", (64, 40), 255).save(tmp_path / "all.png")
    Image.new("L", (40, 64), 0).save(tmp_path / "black.png")
    (tmp_path / "clips.csv").write_text(f"video,mask\n{clips}/clip0.mp4,\n{clips}/clip1.mp4,black.png\n")
    (tmp_path / "seen").mkdir()
    data = VideoDataModule(tmp_path / "clips.csv", mask=tmp_path / "all.png")  # masks pass from worker processes too
    good, bad = make_trainer(devices=1).predict(Sized(), data)
    assert good.mask.shape == (9, 32, 48)
    assert good.mask.all()
    assert bad.reason.startswith(f"mask: {tmp_path}/black.png must be white somewhere")
    with pytest.raises(FileNotFoundError, match=r"^mask .*gone\.png does not exist$"):
        VideoDataModule(clips, mask=str(tmp_path / "gone.png"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": -1}, "^start must be an integer >= 0, got -1$"),
        ({"stride": 0.5}, "^stride must be a number >= 1 or 'spread', got 0.5$"),
        ({"fit": "cover"}, "^fit must be one of crop, pad, stretch, got 'cover'$"),
        ({"num_workers": -1}, "^num_workers must be >= 0, got -1$"),
        ({"prompts": ["a", " "]}, r"^prompts must not be empty texts, got \('a', ' '\)$"),
    ],
)
def test_wrong_arguments_are_found_at_once(clips, settings, message):
    with pytest.raises(ValueError, match=message):
        VideoDataModule(clips, **settings)


def test_missing_and_empty_are_found_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^video .*gone\.mp4 does not exist$"):
        VideoDataModule(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match=r"^videos must name at least one file, but .* holds no video"):
        VideoDataModule(tmp_path)


def test_all_prompts_come_once_in_order(tmp_path, clips):
    path = tmp_path / "clips.csv"
    rows = f"{clips}/clip0.mp4,a fox|a wolf,,\n{clips}/clip1.mp4,a wolf|a bear,a cat,ugly\n{clips}/clip2.mp4,,,ugly\n"
    path.write_text("video,prompts,source_prompt,negative_prompt\n" + rows)
    data = VideoDataModule(path, "a dog", source_prompt="a hen", negative_prompt="blur")
    assert data.all_prompts() == ["a fox", "a wolf", "a hen", "blur", "a bear", "a cat", "ugly", "a dog"]
    assert VideoDataModule(clips, source_prompt="").all_prompts() == [""]  # the negative prompt by default
    assert VideoDataModule(clips, negative_prompt="blur").all_prompts() == ["blur"]


def test_folders_of_frames_are_clips_at_the_rate_that_is_given(tmp_path, clips):
    for name in ("bear", "cat"):
        (tmp_path / name).mkdir()
        for number in range(9):
            Image.new("RGB", (48, 32), (20 * number,) * 3).save(tmp_path / name / f"{number:05d}.jpg")
    bear, cat = make_trainer(devices=1).predict(Sized(), VideoDataModule(tmp_path, fps=12))
    assert [(clip.id, clip.fps, len(clip.frames)) for clip in (bear, cat)] == [("bear", 12, 9), ("cat", 12, 9)]
    with pytest.warns(UserWarning, match=r"^fps: has no effect"):
        VideoDataModule(clips / "clip0.mp4", fps=12)
    for fps in (0, -1, float("nan"), 1e9):
        with pytest.raises(ValueError, match=rf"^fps: .* got {fps}$"):
            VideoDataModule(tmp_path, fps=fps)


class Trained(Sized):
    """One that keeps what it trains on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data):
    module = Trained()
    make_trainer(devices=1, max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    return module


@pytest.fixture
def captioned(tmp_path, clips):
    """Four clips with a text beside each, and a table of them under names of its own."""
    rows = ["path,text"]
    for i in range(4):
        (tmp_path / f"clip{i}.mp4").write_bytes((clips / f"clip{i}.mp4").read_bytes())
        (tmp_path / f"clip{i}.txt").write_text(f"clip {i}\n")
        rows.append(f"clip{i},row {i}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path


def test_captioned_clips_train_as_frames(captioned):
    module = fit(VideoDataModule(captioned, num_workers=0, batches=Batches(batch_size=2, val_share=0.25)))
    assert [batch["frames"].shape for batch in [*module.seen, *module.validated]] == [
        (2, 9, 3, 32, 48),
        (1, 9, 3, 32, 48),
        (1, 9, 3, 32, 48),
    ]
    prompts = []
    for batch in [*module.seen, *module.validated]:
        prompts += batch["prompts"]
        for frames, prompt in zip(batch["frames"], batch["prompts"], strict=True):
            assert torch.equal(frames, read_clip(captioned / f"{prompt.replace(' ', '')}.mp4", limits=LIMITS)[0])
    assert sorted(prompts) == [f"clip {i}" for i in range(4)]


def test_captioned_clips_train_as_latents_from_a_start_on(captioned, tiny_model):
    columns = {"video": "{path}.mp4", "prompt": "text"}
    batches = Batches(batch_size=4, cache=str(captioned / "cache"), vae=str(tiny_model / "vae"))
    data = VideoDataModule(
        captioned / "table.csv",
        columns=columns,
        num_frames=5,
        start=4,
        height=48,
        width=32,
        num_workers=0,
        batches=batches,
    )
    (batch,) = fit(data).seen
    assert sorted(batch["prompts"]) == [f"row {i}" for i in range(4)]
    assert batch["latents"].shape == (4, 2, 8, 12, 8) and batch["latents"].dtype == torch.float32


def test_our_module_trains_on_clips(captioned, tiny_model):
    module = DDIMInversionModule(str(tiny_model), training=Training())
    batches = Batches(batch_size=2, cache=str(captioned / "cache"), val_share=0.25)
    trainer = make_trainer(devices=1, max_epochs=1)
    trainer.fit(module, VideoDataModule(captioned, num_workers=0, batches=batches))
    assert trainer.global_step == 2
    assert trainer.callback_metrics["train/loss"] > 0 and trainer.callback_metrics["val/loss"] > 0


def test_a_clip_that_trains_can_be_predicted_under_its_caption(captioned):
    data = VideoDataModule(captioned, "a cat", num_workers=0, batches=Batches())
    predicted = make_trainer(devices=1).predict(Sized(), data)
    assert [(clip.id, clip.source_prompt, clip.prompts) for clip in predicted] == [
        (f"clip{i}", f"clip {i}", ("a cat",)) for i in range(4)
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "batches: "),
        ({"columns": {"video": "path"}}, "columns: "),
        ({"val_videos": "x"}, "val_videos: "),
        ({"batches": Batches(buckets=((9, 32, 48),)), "height": 32}, "num_frames, height, width: "),
        ({"batches": Batches(buckets=((9, 32, 40),))}, "buckets: "),
        ({"batches": Batches(), "columns": {"video": "path", "prompt": "text"}}, "columns, root: "),
    ],
)
def test_what_cannot_train_is_told_before_it_begins(captioned, options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fit(VideoDataModule(captioned, num_workers=0, **options))
