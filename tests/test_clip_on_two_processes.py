"""Two processes on one clip end where one process does, and fail together."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from ddim_lightning import VideoDataModule, VideoWriter
from ddim_lightning.data.video import write_video
from ddim_lightning.network.split_rows import plan_rows
from ddim_lightning.writer import read_results
from tests.modules import make_module

PROMPTS = ["a red circle", "a blue square"]
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
STEPS = 2


class Watch(Callback):
    """Leaves, for each process, the latents of every clip and what its passes were of; lets a clip fail."""

    def __init__(self, folder, fails=None):
        self.folder, self.fails, self.rows, self.tokens = folder, fails, [], []

    def on_predict_start(self, trainer, pl_module):
        transformer = pl_module.engine.components.transformer
        transformer.patch_embed.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[1])))
        if pl_module.runtime.forward == "diffusers":
            transformer.transformer_blocks[-1].ff.register_forward_pre_hook(
                lambda _, args: self.tokens.append(args[0].shape[1])
            )
        pl_module.progress_listeners.append(lambda progress: self.fail(progress, trainer.global_rank))

    def fail(self, progress, rank):
        if (progress.clip_id, progress.stage, progress.done, rank) == self.fails:
            raise OSError("here and nowhere else")

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        latents = [edit.latents for edit in outputs.edits]
        found = {"latents": latents, "status": outputs.status, "reason": outputs.reason}
        found |= {"rows": list(self.rows), "tokens": list(self.tokens)}
        torch.save(found, self.folder / f"{trainer.global_rank}-{outputs.clip.id}.pt")
        self.rows.clear()
        self.tokens.clear()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of noise."""
    folder, generator = tmp_path_factory.mktemp("clips"), torch.Generator().manual_seed(0)
    for name in "abc":
        frames = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
        write_video(folder / f"{name}.mp4", frames, Fraction(8))
    return folder


def predict(module, data, *callbacks, processes=1):
    strategy = {"devices": processes, "strategy": "ddp_fork" if processes > 1 else "auto"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **QUIET, **strategy)
        trainer.predict(module, data, return_predictions=False)


def run(model, clips, folder, processes=1, fails=None, **options):
    """Edit clips, and return by process and clip what was found out."""
    (folder / "watched").mkdir(parents=True, exist_ok=True)
    given = {name: options.pop(name, None) for name in ("num_frames", "mask")}
    options = {"num_inference_steps": STEPS, "guidance_scale": 6.0, "reconstruct": False, **options}
    module = make_module(str(model), ranks_per_clip=processes, **options)
    data = VideoDataModule(clips, PROMPTS, source_prompt="a ball", num_workers=0, **given)
    writer = VideoWriter(str(folder / "out"), sheets=False)
    predict(module, data, writer, Watch(folder / "watched", fails), processes=processes)
    return {path.stem: torch.load(path) for path in (folder / "watched").iterdir()}


def check_equal(one, two, name, atol=1e-5):
    """Both processes have the same bytes, and those of one process but for rounding."""
    found = zip(one[f"0-{name}"]["latents"], two[f"0-{name}"]["latents"], two[f"1-{name}"]["latents"], strict=True)
    for wanted, mine, other in found:
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, wanted, rtol=0, atol=atol)


def check_folders(one, two, found, name):
    """The folder of a clip has the same files, and the same bytes where its latents are the same."""
    one, two = one / "out" / name, two / "out" / name
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    same = [torch.equal(*pair) for pair in zip(*(run[f"0-{name}"]["latents"] for run in found), strict=True)]
    files = ["source.mp4", *(f"edit-{k:02d}.mp4" for k, equal in enumerate(same) if equal)]
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    records = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert records[0]["nfe"] == records[1]["nfe"]


def test_two_go_where_one_goes_and_a_clip_that_fails_in_one_is_skipped_by_both(tiny_model, clips, tmp_path):
    options, one, two = {"editor": "KVInjection", "batch_prompts": True}, tmp_path / "one", tmp_path / "two"
    videos = [clips / "a.mp4", clips / "b.mp4"]
    alone = run(tiny_model, videos, one, **options)
    split = run(tiny_model, videos, two, 2, ("a", "edit", 1, 1), **options)
    for rank in "01":
        assert split[f"{rank}-a"]["status"] == "skipped"
        assert "OSError: here and nowhere else" in split[f"{rank}-a"]["reason"]
    check_equal(alone, split, "b")
    check_folders(one, two, (alone, split), "b")
    # Both edits read one source, which each process evaluates beside its own; an inversion is one row. At the first
    # step what guidance moves away from is one row for both.
    whole, readers = alone["0-b"]["rows"], (3, 4)
    assert whole == [1] * (2 + 1) + [count + 1 for count in readers]
    plans = [plan_rows(count, (count,) * count, 2) for count in readers]
    for rank, expected in enumerate(([2, 3], [3, 3])):
        assert [len(plan[rank].rows) for plan in plans] == expected
        assert split[f"{rank}-b"]["rows"] == [*whole[:-STEPS], *expected]
    assert {record["id"]: record["status"] for record in read_results(two / "out")} == {"a": "skipped", "b": "done"}
    again = run(tiny_model, videos, two, 2, **options)
    assert [again[f"{rank}-{name}"]["status"] for rank in "01" for name in "ab"] == ["done", "finished"] * 2
    check_equal(alone, again, "a")
    assert {record["id"]: record["status"] for record in read_results(two / "out")} == {"a": "done", "b": "done"}


CASES = {
    "what is recommended": {},
    "source held": {"editor": "InContextEdit"},
    "paired sources": {"editor": {"class_path": "KVInjection", "init_args": {"source_rows": "paired"}}},
    "forward of diffusers": {"editor": "KVInjection", "forward": "diffusers"},
    "reconstruction and trajectory": {"editor": "DirectInversion", "reconstruct": True, "save_trajectory": True},
}


@pytest.fixture(scope="module")
def bundled_clip(tmp_path_factory):
    """Noise of the size that the bundled model was trained at.

    Products of so many tokens do not round by the number of rows. Those of the random model do, and a guidance of 6
    over what it holds in its context makes 1e-5 of that for some clips.
    """
    path, generator = tmp_path_factory.mktemp("bundled") / "c.mp4", torch.Generator().manual_seed(0)
    write_video(path, torch.randint(0, 256, (9, 3, 64, 64), generator=generator, dtype=torch.uint8), Fraction(8))
    return path


def check_rows_are_split(model, clip, folder, options):
    one, two = folder / "one", folder / "two"
    found = (run(model, [clip], one, **options), run(model, [clip], two, 2, **options))
    check_equal(*found, "c")
    check_folders(one, two, found, "c")
    whole, shares = found[0]["0-c"]["rows"], [found[1][f"{rank}-c"]["rows"] for rank in (0, 1)]
    assert all(max(pair) <= rows for rows, pair in zip(whole, zip(*shares, strict=True), strict=True))
    assert all(sum(rows) < sum(whole) for rows in shares)


def test_what_is_recommended_gives_on_two_processes_what_it_gives_on_one(tiny_model, clips, tmp_path):
    check_rows_are_split(tiny_model, clips / "c.mp4", tmp_path, {})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_editors_give_on_two_processes_what_they_give_on_one(bundled_clip, tmp_path, case):
    check_rows_are_split("tiny", bundled_clip, tmp_path, CASES[case])


@pytest.mark.slow
def test_rows_under_a_mask_keep_their_masks(tiny_model, clips, tmp_path):
    white = torch.zeros(32, 32, dtype=torch.uint8)
    white[:16, :24] = 255
    Image.fromarray(white.numpy()).save(tmp_path / "mask.png")
    options = {"editor": {"class_path": "KVInjection", "init_args": {"outside": "source"}}, "batch_prompts": True}
    found = [
        run(tiny_model, [clips / "c.mp4"], tmp_path / f"{n}", n, mask=tmp_path / "mask.png", **options) for n in (1, 2)
    ]
    check_equal(*found, "c")
    check_folders(tmp_path / "1", tmp_path / "2", found, "c")


@pytest.mark.slow
def test_windows_of_a_long_clip_are_split_one_after_the_other(tiny_model, tmp_path):
    frames = torch.randint(0, 256, (29, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "long.mp4", frames, Fraction(8))
    found = [
        run(tiny_model, [tmp_path / "long.mp4"], tmp_path / f"{n}", n, num_frames="all", editor="KVInjection")
        for n in (1, 2)
    ]
    check_equal(*found, "long")
    assert json.loads((tmp_path / "2" / "out" / "long" / "result.json").read_text())["windows"]["count"] > 1


TOKENS = {"forward": "diffusers", "ranks_split": "tokens"}


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, {"editor": "KVInjection", "reconstruct": True}),
        pytest.param(3, {"editor": "KVInjection", "batch_prompts": True}, marks=pytest.mark.slow),
        pytest.param(2, {"editor": "InContextEdit"}, marks=pytest.mark.slow),
        pytest.param(2, {"editor": "KVInjection", "dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_tokens_of_every_row_are_split_too(tiny_model, clips, tmp_path, processes, options):
    one, two = tmp_path / "one", tmp_path / "two"
    videos = [clips / "c.mp4"]
    alone = run(tiny_model, videos, one, forward="diffusers", **options)
    found = (alone, run(tiny_model, videos, two, processes, **TOKENS, **options))
    check_equal(*found, "c", atol=0.05 if "dtype" in options else 1e-5)
    check_folders(one, two, found, "c")
    shares = [found[1][f"{rank}-c"] for rank in range(processes)]
    assert all(share["rows"] == alone["0-c"]["rows"] for share in shares)
    assert [sum(counts) for counts in zip(*(share["tokens"] for share in shares), strict=True)] == alone["0-c"][
        "tokens"
    ]
    assert max(shares[0]["tokens"]) <= max(alone["0-c"]["tokens"]) / processes + 2


class Foreign(Dataset):
    """Clips that bring no id."""

    def __len__(self):
        return 2

    def __getitem__(self, k):
        return {"video": torch.full((5, 3, 32, 32), 0.1 * k), "prompts": "a red circle"}


class Loads(LightningDataModule):
    """Somebody's own data module, whose clips Lightning deals out."""

    def predict_dataloader(self):
        return DataLoader(Foreign(), batch_size=None)


@pytest.mark.slow
def test_processes_that_are_given_different_clips_say_so(tiny_model, tmp_path):
    module = make_module(str(tiny_model), num_inference_steps=STEPS, ranks_per_clip=2)
    with pytest.raises(
        ProcessRaisedException, match=r"ranks_per_clip: .* must have the same clip, got .*rank-0-batch-0"
    ):
        predict(module, Loads(), VideoWriter(str(tmp_path)), processes=2)


def test_a_run_of_one_process_is_refused_before_anything_is_loaded(tmp_path):
    module = make_module(ranks_per_clip=2)
    with pytest.raises(ValueError, match=r"^ranks_per_clip: must divide the number of processes, .*, 1, got 2"):
        module.load("cpu")
