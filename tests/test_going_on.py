"""A run into a folder goes on where an earlier one ended."""

from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, VideoDataModule, VideoWriter
from ddim_lightning.cli.main import main
from ddim_lightning.data.dataset import ShardSampler
from ddim_lightning.data.video import write_video
from ddim_lightning.writer import read_results
from tests.modules import make_module

QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


def make_frames(seed, f=5, h=16, w=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (f, 3, h, w), generator=generator, dtype=torch.uint8)


class Clips(LightningDataModule):
    """Somebody's own data module: clips from no file, no list of prompts or ids."""

    def __init__(self, *clips):
        super().__init__()
        self.clips = clips
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self):
        sampler = ShardSampler(self.clips, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self.clips, batch_size=None, sampler=sampler)


def make_clip(clip_id, seed=0, **changes):
    return Clip(**{"id": clip_id, "frames": make_frames(seed), "prompts": ("a red circle",), **changes})


def run(folder, data, model, *, overwrite=False, sheets=False, trainer=None, **options):
    module = make_module(str(model), num_inference_steps=2, **options)
    writer = VideoWriter(str(folder), sheets=sheets, overwrite=overwrite)
    trainer = Trainer(accelerator="cpu", **QUIET, callbacks=[writer], **(trainer or {"devices": 1}))
    results = trainer.predict(module, data)
    return None if results is None else [result.status for result in results]


def read_times(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def test_the_same_run_again_finds_everything_finished(tiny_model, tmp_path):
    data = Clips(make_clip("b"), make_clip("a", 1))
    assert run(tmp_path, data, tiny_model) == ["done", "done"]
    listed, times = (tmp_path / "results.jsonl").read_bytes(), read_times(tmp_path)
    assert run(tmp_path, data, tiny_model) == ["finished", "finished"]
    assert ((tmp_path / "results.jsonl").read_bytes(), read_times(tmp_path)) == (listed, times)
    assert run(tmp_path, data, tiny_model, overwrite=True) == ["done", "done"]
    assert not set(read_times(tmp_path).values()) & set(times.values())


def test_several_processes_find_what_one_has_finished(tiny_model, tmp_path):
    first, more = [make_clip("b"), make_clip("a", 1)], [make_clip("c", 2)]
    run(tmp_path, Clips(*first), tiny_model)
    times = read_times(tmp_path)
    two = {"devices": 2, "strategy": "ddp_fork"}
    run(tmp_path, Clips(*first, *more), tiny_model, trainer=two)
    assert {name: time for name, time in read_times(tmp_path).items() if name != "c"} == times
    assert [record["id"] for record in read_results(tmp_path)] == ["a", "b", "c"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "index.html", "results.jsonl"]


def test_a_clip_that_is_not_the_same_is_done_again(tiny_model, tmp_path):
    run(tmp_path, Clips(make_clip("a")), tiny_model)
    assert run(tmp_path, Clips(make_clip("a", 1)), tiny_model) == ["done"]
    assert len(read_results(tmp_path, earlier=True)) == 1


@pytest.mark.parametrize("options", [{"reconstruct": False}, {"inversion_prompt": "a clip"}, {"dtype": "bfloat16"}])
def test_other_settings_make_another_result(options, tiny_model, tmp_path):
    data = Clips(make_clip("a", source_prompt="a blue square"))
    run(tmp_path, data, tiny_model)
    assert run(tmp_path, data, tiny_model, **options) == ["done"]


def test_names_do_not_matter_and_weights_do(tiny_model, tmp_path):
    data = Clips(make_clip("a"))
    run(tmp_path / "out", data, tiny_model)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert run(tmp_path / "out", data, copy, prompt_cache=str(tmp_path / "cache")) == ["finished"]
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        other = shutil.copytree(tiny_model, tmp_path / part.partition("/")[0])
        path = other / f"{part}.safetensors"
        content = bytearray(path.read_bytes())
        content[-4096:] = bytes(4096)
        path.write_bytes(content)
        assert run(tmp_path / "out", data, other) == ["done"]


@pytest.mark.parametrize("spoil", [os.unlink, lambda path: open(path, "w").close()])
def test_a_folder_that_is_not_whole_is_done_again(spoil, tiny_model, tmp_path):
    data = Clips(make_clip("a"))
    run(tmp_path, data, tiny_model)
    spoil(tmp_path / "a" / "edit-00.mp4")
    assert run(tmp_path, data, tiny_model) == ["done"]
    assert (tmp_path / "a" / "edit-00.mp4").stat().st_size > 0


def test_a_clip_that_was_skipped_is_tried_again(tiny_model, tmp_path):
    (tmp_path / "clip.mp4").write_text("not yet a video")
    data = {"height": 16, "width": 24, "num_workers": 0}
    make = lambda: VideoDataModule([tmp_path / "clip.mp4"], ["a red circle"], **data)  # noqa: E731
    assert run(tmp_path / "out", make(), tiny_model) == ["skipped"]
    write_video(tmp_path / "clip.mp4", make_frames(0), Fraction(8))
    assert run(tmp_path / "out", make(), tiny_model) == ["done"]
    assert [record["status"] for record in read_results(tmp_path / "out", earlier=True)] == ["done"]


def test_what_is_finished_but_not_in_the_list_comes_into_it(tiny_model, tmp_path):
    data = Clips(make_clip("a"), make_clip("b"))
    run(tmp_path, data, tiny_model)
    listed = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(listed.splitlines(keepends=True)[1])
    assert run(tmp_path, data, tiny_model) == ["finished", "finished"]
    assert (tmp_path / "results.jsonl").read_bytes() == listed


def test_a_module_without_a_writer_does_every_clip(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=2)
    for _ in range(2):
        (result,) = Trainer(accelerator="cpu", devices=1, **QUIET).predict(module, Clips(make_clip("a")))
        assert result.status == "done"


def test_a_clip_that_could_not_be_written_is_not_computed(tiny_model, tmp_path):
    (tmp_path / "taken").write_text("mine")
    module = make_module(str(tiny_model), num_inference_steps=2)
    ticks = []
    module.progress_listeners.append(ticks.append)
    trainer = Trainer(accelerator="cpu", devices=1, **QUIET, callbacks=[VideoWriter(str(tmp_path), sheets=False)])
    with pytest.warns(UserWarning, match="taken: skipped"):
        (result,) = trainer.predict(module, Clips(make_clip("taken")))
    assert (result.status, ticks) == ("skipped", [])


def test_a_clip_whose_id_will_not_do_costs_no_other(tiny_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"skipped: .*id: must be"):
        statuses = run(tmp_path / "out", Clips(make_clip(".."), make_clip("\udc80"), make_clip("a")), tiny_model)
    assert statuses == ["skipped", "skipped", "done"]
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "index.html", "results.jsonl"]


def test_edit_goes_on_and_begins_afresh(tiny_model, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", make_frames(0), Fraction(8))
    words = ["edit", str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    words += ["--steps", "1", "--height", "16", "--width", "24", "--prompt", "a red circle"]
    assert main(words) == 0
    assert "finished before" not in capsys.readouterr().err
    times = read_times(tmp_path / "out")
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["done"] == 1
    assert "1 of 1 clips were finished before" in told.err
    assert read_times(tmp_path / "out") == times
    assert main([*words, "--overwrite"]) == 0
    assert read_times(tmp_path / "out") != times
