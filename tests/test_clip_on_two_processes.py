"""Two processes on one clip end where one process does, and fail together."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from ddim_lightning import VideoDataModule, VideoWriter
from ddim_lightning.data.video import write_video
from ddim_lightning.network.split_rows import plan_rows
from ddim_lightning.writer import read_results
from tests.modules import make_module

PROMPTS = ["a red circle", "a blue square"]
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
STEPS = 3


class Watch(Callback):
    """Leaves, for each process, the latents of every clip and how many rows each pass had; lets a clip fail."""

    def __init__(self, folder, fails=None):
        self.folder, self.fails, self.rows = folder, fails, []

    def on_predict_start(self, trainer, pl_module):
        transformer = pl_module.engine.components.transformer
        transformer.patch_embed.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[1])))
        pl_module.progress_listeners.append(lambda progress: self.fail(progress, trainer.global_rank))

    def fail(self, progress, rank):
        if (progress.clip_id, progress.stage, progress.done, rank) == self.fails:
            raise OSError("here and nowhere else")

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        latents = [edit.latents for edit in outputs.edits]
        found = {"latents": latents, "rows": list(self.rows), "status": outputs.status, "reason": outputs.reason}
        torch.save(found, self.folder / f"{trainer.global_rank}-{outputs.clip.id}.pt")
        self.rows.clear()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of noise."""
    folder, generator = tmp_path_factory.mktemp("clips"), torch.Generator().manual_seed(0)
    for name in "abc":
        frames = torch.randint(0, 256, (9, 3, 32, 32), generator=generator, dtype=torch.uint8)
        write_video(folder / f"{name}.mp4", frames, Fraction(8))
    return folder


def run(model, clips, folder, ranks=1, fails=None, videos="ac", **options):
    """Edit clips, and return by process and clip what was found out."""
    (folder / "watched").mkdir(parents=True)
    module = make_module(str(model), num_inference_steps=STEPS, ranks_per_clip=ranks, guidance_scale=6.0, **options)
    data = VideoDataModule([clips / f"{name}.mp4" for name in videos], PROMPTS, source_prompt="a ball", num_workers=0)
    callbacks = [VideoWriter(str(folder / "out"), sheets=False), Watch(folder / "watched", fails)]
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(accelerator="cpu", callbacks=callbacks, **QUIET, **strategy).predict(
            module, data, return_predictions=False
        )
    return {path.stem: torch.load(path) for path in (folder / "watched").iterdir()}


def check_equal(one, two, names):
    """Both processes have the same bytes, and those of one process but for rounding."""
    for name in names:
        first, second = two[f"0-{name}"]["latents"], two[f"1-{name}"]["latents"]
        assert len(first) == len(PROMPTS)
        for wanted, mine, other in zip(one[f"0-{name}"]["latents"], first, second, strict=True):
            assert torch.equal(mine, other)
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_readers_of_one_source_are_split_and_a_clip_that_fails_in_one_is_skipped_by_both(tiny_model, clips, tmp_path):
    options = {"editor": "KVInjection", "batch_prompts": True}
    one = run(tiny_model, clips, tmp_path / "one", **options)
    two = run(tiny_model, clips, tmp_path / "two", 2, ("b", "edit", 1, 1), "abc", **options)
    print(one["0-a"]["rows"], two["0-a"]["rows"], two["1-a"]["rows"])
    check_equal(one, two, "ac")
