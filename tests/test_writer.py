"""Runs into an output folder, of a module that has its results beforehand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from ddim_lightning.output.place import DiskError
from ddim_lightning.types import ClipResult, UnreadableClip
from ddim_lightning.writer import VideoWriter, make_output_dir, read_results
from tests.clip_results import make_frames
from tests.clip_results import make_small_result as _small

QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


class _Echo(LightningModule):
    """Predicts the results it was given, by position."""

    def __init__(self, results):
        super().__init__()
        self.results = results

    def predict_step(self, batch, batch_idx):
        return self.results[int(batch)]


def _run(folder, results, make=_Echo, **settings):
    trainer = Trainer(accelerator="cpu", **QUIET, callbacks=[VideoWriter(str(folder), sheets=False)], **settings)
    loader = DataLoader(torch.arange(len(results)), batch_size=1)
    trainer.predict(make(results), loader, return_predictions=False)


def _read_statuses(folder):
    return {record["id"]: record["status"] for record in read_results(folder)}


SKIPPED = ClipResult(UnreadableClip("bad", "bad.mp4", "bad.mp4 is empty", ("x",)), "skipped", "bad.mp4 is empty")


@pytest.mark.parametrize("settings", [{"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}])
def test_the_list_has_every_clip_of_every_rank_once_sorted_by_id(tmp_path, settings):
    _run(tmp_path / "new" / "out", [_small("c"), SKIPPED, _small("a"), _small("d")], **settings)
    records = read_results(tmp_path / "new" / "out")
    assert [record["id"] for record in records] == ["a", "bad", "c", "d"]
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["a", "c", "d", "index.html", "results.jsonl"]
    assert records[0] == json.loads((tmp_path / "new" / "out" / "a" / "result.json").read_text("utf-8"))
    bad = records[1]
    assert set(bad) == set(records[0])
    assert (bad["status"], bad["reason"], bad["frames"], bad["fps"]) == ("skipped", "bad.mp4 is empty", None, None)
    assert (bad["prompts"], bad["files"]) == (["x"], {"input": "bad.mp4"})


def test_the_list_keeps_earlier_runs_and_tells_them_from_the_last(tmp_path):
    _run(tmp_path, [_small("b"), _small("a")], devices=1)
    _run(tmp_path, [_small("d"), _small("c")], devices=1)
    assert [record["id"] for record in read_results(tmp_path)] == ["c", "d"]
    records = read_results(tmp_path, earlier=True)
    assert [(record["id"], "earlier" in record) for record in records] == [
        ("a", True),
        ("b", True),
        ("c", False),
        ("d", False),
    ]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d", "index.html", "results.jsonl"]


def test_a_line_ends_where_the_file_says_so_not_where_a_prompt_does(tmp_path):
    result = _small("a")
    result.clip.prompts = ("a\u2028b\x85c",)
    _run(tmp_path, [result, _small("b")], devices=1)
    assert [record["prompts"][0] for record in read_results(tmp_path)] == ["a\u2028b\x85c", "a green square"]


@pytest.mark.parametrize("ending", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_run_that_does_not_end_lists_what_it_finished(ending, tmp_path):
    class Ends(_Echo):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ending
            return super().predict_step(batch, batch_idx)

    _run(tmp_path, [_small("old")], devices=1)
    results = [_small("b"), SKIPPED, _small("c"), _small("d")]
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((RuntimeError, SystemExit)):
            _run(tmp_path, results, make=Ends, devices=1)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning turns it off when it is interrupted
    assert [record["id"] for record in read_results(tmp_path)] == ["b", "bad"]
    assert (tmp_path / "old" / "result.json").is_file()


def test_the_list_grows_with_the_run(tmp_path):
    seen = []

    class Looks(_Echo):
        def predict_step(self, batch, batch_idx):
            lines = (tmp_path / "results.jsonl").read_text("utf-8").splitlines()
            seen.append(sorted(json.loads(line)["id"] for line in lines))
            return super().predict_step(batch, batch_idx)

    _run(tmp_path, [_small("a"), _small("b")], devices=1)
    _run(tmp_path, [_small("c"), _small("a"), SKIPPED], make=Looks, devices=1)
    assert seen == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]


def test_a_run_that_never_began_leaves_the_list_alone(tmp_path):
    class Wrong(LightningDataModule):
        def setup(self, stage):
            raise ValueError("width must be a multiple of 8")

    _run(tmp_path, [_small("old")], devices=1)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[VideoWriter(str(tmp_path))])
    with pytest.raises(ValueError, match="width"):
        trainer.predict(_Echo([]), Wrong(), return_predictions=False)
    assert [record["id"] for record in read_results(tmp_path)] == ["old"]


def test_the_folder_of_a_clip_that_is_skipped_now_stays(tmp_path):
    _run(tmp_path, [_small("bad")], devices=1)
    _run(tmp_path, [SKIPPED], devices=1)
    assert (tmp_path / "bad" / "source.mp4").is_file()
    assert [(record["id"], record["status"]) for record in read_results(tmp_path)] == [("bad", "skipped")]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: Path("/proc/nope/out"), FileNotFoundError),
        (lambda folder: folder / "file" / "out", NotADirectoryError),
        (lambda folder: folder / "file", FileExistsError),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, make, error):
    (tmp_path / "file").write_text("x")
    with pytest.raises(error, match=r"^output_dir: must be a folder that can be written to, got '"):
        make_output_dir(make(tmp_path))


def test_the_folder_is_checked_before_the_model_is_made(tmp_path):
    class Never(_Echo):
        def configure_model(self):
            pytest.fail("the model was made first")

    (tmp_path / "file").write_text("x")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[VideoWriter(str(tmp_path / "file"))])
    with pytest.raises(FileExistsError, match="output_dir"):
        trainer.predict(Never([]), DataLoader(torch.arange(1)), return_predictions=False)


def test_a_clip_whose_folder_cannot_take_its_place_is_skipped_alone(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00000.png").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "frames")
    _run(tmp_path / "done", [_small("noted")], devices=1)
    (tmp_path / "done" / "noted").rename(tmp_path / "noted")
    (tmp_path / "noted" / "notes.txt").write_text("mine")
    ids = ["good", "frames", "file", "link", "", "..", "a/b", "x" * 65, "\udc80", "noted", "Good", "also good"]
    with pytest.warns(UserWarning, match="skipped"):
        _run(tmp_path, [_small(clip_id) for clip_id in ids], devices=1)
    statuses = _read_statuses(tmp_path)
    assert sorted(statuses) == sorted(clip_id.replace("\udc80", "\\x80") for clip_id in ids)
    assert [clip_id for clip_id, status in statuses.items() if status == "done"] == ["also good", "good"]
    assert {(tmp_path / name).read_text() for name in ("frames/00000.png", "file", "noted/notes.txt")} == {"mine"}
    assert (tmp_path / "link").is_symlink()
    assert all(record["reason"] for record in read_results(tmp_path) if record["status"] == "skipped")


def test_what_goes_wrong_in_writing_costs_its_clip_or_ends_the_run_as_the_module_says(tmp_path):
    class Strict(_Echo):
        outputs = type("Outputs", (), {"on_error": "raise"})

    def make_odd():
        return _small("odd", reconstruction=make_frames(1, h=31))

    with pytest.warns(UserWarning, match="odd: skipped: .*31"):
        _run(tmp_path / "lenient", [make_odd(), _small("b")], devices=1)
    assert _read_statuses(tmp_path / "lenient") == {"b": "done", "odd": "skipped"}
    with pytest.raises(ValueError, match="31"):
        _run(tmp_path / "strict", [_small("a"), make_odd(), _small("b")], make=Strict, devices=1)
    assert _read_statuses(tmp_path / "strict") == {"a": "done"}


def test_a_source_that_is_gone_costs_the_sound_alone(tmp_path):
    result = _small("a")
    result.clip.source = str(tmp_path / "gone.mp4")
    _run(tmp_path / "out", [result], devices=1)
    (record,) = read_results(tmp_path / "out")
    assert record["status"] == "done"
    assert any("no sound" in sentence and "gone.mp4" in sentence for sentence in record["warnings"])


class _Listed(LightningDataModule):
    """Says beforehand which clips there will be."""

    def __init__(self, *ids):
        super().__init__()
        self.ids = ids

    def all_ids(self):
        return list(self.ids)

    def predict_dataloader(self):
        return DataLoader(torch.arange(len(self.ids)), batch_size=1)


def _run_listed(folder, *ids, made):
    class Made(_Echo):
        def configure_model(self):
            made.append(True)

    trainer = Trainer(accelerator="cpu", **QUIET, callbacks=[VideoWriter(str(folder), sheets=False)], devices=1)
    trainer.predict(Made([_small(clip_id) for clip_id in ids]), _Listed(*ids), return_predictions=False)


def test_a_folder_of_ones_own_is_an_error_before_the_model_is_made(tmp_path):
    (tmp_path / "mine").mkdir()
    made = []
    with pytest.raises(FileExistsError, match=r"output_dir.*mine"):
        _run_listed(tmp_path, "a", "mine", made=made)
    assert (made, os.listdir(tmp_path)) == ([], ["mine"])


def test_a_file_in_the_place_of_a_folder_is_an_error_beforehand_where_no_other_clip_is_left(tmp_path):
    (tmp_path / "taken").write_text("mine")
    made = []
    with pytest.raises(NotADirectoryError, match=r"output_dir.*taken"):
        _run_listed(tmp_path, "taken", made=made)
    assert not made
    with pytest.warns(UserWarning, match="taken: skipped"):
        _run_listed(tmp_path, "a", "taken", made=made)
    assert _read_statuses(tmp_path) == {"a": "done", "taken": "skipped"}


@pytest.mark.parametrize("content", ["my own results\n", '{"id": "a"}\n', "[]\n", "\xff"])
def test_a_list_of_somebody_else_is_left_alone(content, tmp_path):
    (tmp_path / "results.jsonl").write_bytes(content.encode("latin-1"))
    made = []
    with pytest.raises(ValueError, match=r"output_dir.*results\.jsonl"):
        _run_listed(tmp_path, "a", made=made)
    assert not made
    assert (tmp_path / "results.jsonl").read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("name", ["results.jsonl", ".ddim_lightning"])
def test_a_link_in_the_output_folder_is_not_followed(name, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "precious").write_text("")
    (output / name).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="out"):
        _run(output, [_small("a")], devices=1)
    assert (tmp_path / "precious").read_text() == ""
    assert os.listdir(output) == [name]


def test_the_output_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    _run(tmp_path / "out", [_small("a")], devices=1)
    assert sorted(os.listdir(tmp_path / "real")) == ["a", "index.html", "results.jsonl"]


def test_a_second_run_into_the_folder_is_refused_while_the_first_is_at_work(tmp_path):
    class Nests(_Echo):
        def predict_step(self, batch, batch_idx):
            with pytest.raises(BlockingIOError, match="output_dir"):
                _run(tmp_path, [_small("b")], devices=1)
            return super().predict_step(batch, batch_idx)

    _run(tmp_path, [_small("a")], make=Nests, devices=1)
    _run(tmp_path, [_small("c")], devices=1)
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "index.html", "results.jsonl"]


def test_what_a_run_that_was_killed_left_is_cleared_away(tmp_path):
    (tmp_path / ".ddim_lightning" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / ".ddim_lightning" / "0123456789abcdef" / "source.mp4").write_text("half")
    (tmp_path / ".ddim_lightning" / "lock").touch()
    _run(tmp_path, [_small("a")], devices=1)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"schema": 3, "id": "b", "stat')
    (tmp_path / "a" / "result.json").rename(tmp_path / "kept.json")
    (tmp_path / "a").rename(tmp_path / "moved")
    _run(tmp_path, [_small("c")], devices=1)
    assert [record["id"] for record in read_results(tmp_path, earlier=True)] == ["c"]
    assert sorted(os.listdir(tmp_path)) == ["c", "index.html", "kept.json", "moved", "results.jsonl"]


def test_sigterm_ends_the_run_after_the_clip_in_work(tmp_path):
    class Told(_Echo):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 1:
                signal.raise_signal(signal.SIGTERM)
            return super().predict_step(batch, batch_idx)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            _run(tmp_path, [_small("a"), _small("b"), _small("c")], make=Told, devices=1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "index.html", "results.jsonl"]


@pytest.fixture
def small_files():
    """No file can grow beyond 64 KiB, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("kind", ["video", "trajectory"])
def test_a_full_disk_ends_the_run_with_one_clear_error_and_nothing_half(kind, tmp_path):
    if kind == "video":
        noise = torch.randint(0, 256, (9, 3, 128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        large = _small("large", reconstruction=noise)
    else:
        large = _small("large", trajectory={"levels": torch.ones(2**15)})
    with pytest.raises(DiskError, match=r"^output_dir: [^\n]*too large$"):
        _run(tmp_path, [_small("a"), large, _small("c")], devices=1)
    assert sorted(os.listdir(tmp_path)) == ["a", "index.html", "results.jsonl"]
    assert _read_statuses(tmp_path) == {"a": "done"}
