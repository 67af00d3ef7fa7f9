"""The callbacks that measure a run, under a real Trainer."""

from __future__ import annotations

import csv
import json
import statistics
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from ddim_lightning import Clip, KVInjection, MemoryTimeline, StepTimer, UnreadableClip
from ddim_lightning.runtime.timing import read_memory_gib
from tests.modules import make_module

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
STEPS = 3
NETWORK = {"invert": STEPS, "reconstruct": STEPS, "edit": 2 * STEPS}
ALL = {"encode": 1, **NETWORK, "decode": 4}


def make_clip(name, **fields):
    generator = torch.Generator().manual_seed(len(name))
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=generator, dtype=torch.uint8)
    return Clip(name, frames, **({"prompts": ("a red circle", "a cross")} | fields))


class Clips(LightningDataModule):
    def __init__(self, clips):
        super().__init__()
        self.clips = clips

    def predict_dataloader(self):
        return DataLoader(self.clips, batch_size=None)


@dataclass(frozen=True)
class FailsOnce(KVInjection):
    """Fails in the second step of the first clip's edit."""

    def update(self, state, velocities, step, inversion):
        if step.i == 1 and not FAILED:
            FAILED.append(True)
            raise RuntimeError("out of memory")
        return super().update(state, velocities, step, inversion)


FAILED = []


def predict(model, clips, *callbacks, **options):
    logger = options.pop("logger", False)
    accelerator = options.pop("accelerator", "cpu")
    module = make_module(str(model), **({"num_inference_steps": STEPS, "editor": KVInjection()} | options))
    settings = QUIET | {"logger": logger, "accelerator": accelerator, "devices": 1, "callbacks": list(callbacks)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**settings).predict(module, Clips(clips), return_predictions=False)
    return module


def count(records, clip_id):
    return dict(Counter(record.stage for record in records if record.clip_id == clip_id))


def check_metrics(metrics, timer, memory):
    """Every step of every stage has arrived in a logger, at its place in the run, and so has the summary."""
    for stage in NETWORK:
        expected = [(record.step, record.step_ms) for record in timer.records if record.stage == stage]
        assert [step for step, _ in metrics[f"step_ms/{stage}"]] == [step for step, _ in expected]
        assert [ms for _, ms in metrics[f"step_ms/{stage}"]] == pytest.approx([ms for _, ms in expected])
        for name, value in timer.summarize()[stage].items():
            assert metrics[f"{name}/{stage}"] == [(memory.records[-1].step, pytest.approx(value))]
    for stage in ALL:
        steps = [record.step for record in memory.records if record.stage == stage]
        assert [step for step, _ in metrics[f"resident_gib/{stage}"]] == steps
        assert metrics[f"peak_gib/{stage}"][0][1] == pytest.approx(memory.peak_gib[stage])
    assert "step_ms/encode" not in metrics


def read_csv(path):
    metrics = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    metrics.setdefault(name, []).append((int(row["step"]), float(value)))
    return metrics


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_step_is_measured_logged_and_written(tiny_model, tmp_path):
    timer, memory = StepTimer(tmp_path / "new" / "folder"), MemoryTimeline(tmp_path / "new" / "folder")
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tensorboard")]
    module = predict(tiny_model, [make_clip("a"), make_clip("bb")], timer, memory, logger=loggers)
    assert module.progress_listeners == []
    for clip_id in ("a", "bb"):
        assert count(timer.records, clip_id) == NETWORK
        assert count(memory.records, clip_id) == ALL
    assert [record.step for record in memory.records] == list(range(1, 2 * sum(ALL.values()) + 1))
    labels = [(record.label, record.done) for record in timer.records[2 * STEPS : 4 * STEPS]]
    assert labels == [(f"edit {k}/2", done) for k in (1, 2) for done in range(1, STEPS + 1)]
    assert all(record.step_ms > 0 for record in timer.records)
    check_metrics(read_csv(Path(loggers[0].log_dir) / "metrics.csv"), timer, memory)
    check_metrics(read_tensorboard(loggers[1].log_dir), timer, memory)

    written = json.loads((tmp_path / "new" / "folder" / "timings.json").read_text())
    assert written["records"] == [asdict(record) for record in timer.records]
    assert written["stages"] == timer.summarize()
    assert (written["warm_up_steps"], written["rank"], written["device"]) == (1, 0, "cpu")
    written = json.loads((tmp_path / "new" / "folder" / "memory.json").read_text())
    assert written["records"] == [asdict(record) for record in memory.records]
    assert {stage: part["peak_gib"] for stage, part in written["stages"].items()} == memory.peak_gib


def test_the_summary_leaves_out_the_warm_up_of_the_run_and_counts_nfe(tiny_model):
    timer, rested = StepTimer(), StepTimer(warm_up=2)
    predict(tiny_model, [make_clip("a"), make_clip("bb")], timer, rested, reconstruct=False)
    times = [record.step_ms for record in timer.records if record.stage == "edit"]
    summary = timer.summarize()
    assert set(summary) == {"invert", "edit"}
    assert summary["edit"]["step_ms_median"] == statistics.median(times[1:])
    assert min(times[1:]) <= summary["edit"]["step_ms_p10"] <= summary["edit"]["step_ms_p90"] <= max(times[1:])
    # Uni-Inv spends one call more than steps; a guided edit has two nfe of its own and one of the source.
    assert summary["invert"]["nfe_a_step"] == pytest.approx((STEPS + 1) / STEPS)
    assert (summary["edit"]["nfe_a_step"], summary["edit"]["steps"]) == (3.0, 4 * STEPS)
    times = [record.step_ms for record in rested.records if record.stage == "edit"]
    assert rested.summarize()["edit"]["step_ms_median"] == statistics.median(times[2:])


def test_two_timers_measure_the_same_steps(tiny_model):
    one, other = StepTimer(), StepTimer()
    predict(tiny_model, [make_clip("a")], one, other)
    assert len(one.records) == len(other.records) == sum(NETWORK.values())
    for ours, theirs in zip(one.records, other.records, strict=True):
        assert (ours.step, ours.stage, ours.done) == (theirs.step, theirs.stage, theirs.done)


def test_a_skipped_clip_loses_nothing(tiny_model, tmp_path):
    wrong_size = make_clip("bb")
    wrong_size.frames = wrong_size.frames[..., :20]
    timer, memory = StepTimer(tmp_path), MemoryTimeline()
    FAILED.clear()
    clips = [make_clip("fails"), wrong_size, UnreadableClip("ccc", "ccc.mp4", "not a video"), make_clip("dddd")]
    predict(tiny_model, clips, timer, memory, editor=FailsOnce())
    assert FAILED
    assert count(timer.records, "fails") == {"invert": STEPS, "reconstruct": STEPS, "edit": 1}
    assert count(timer.records, "dddd") == NETWORK
    assert count(memory.records, "dddd") == ALL
    assert {record.clip_id for record in timer.records} == {"fails", "dddd"}
    assert len(json.loads((tmp_path / "timings.json").read_text())["records"]) == len(timer.records)


def test_a_run_that_fails_leaves_the_clips_that_were_finished(tiny_model, tmp_path):
    timer, memory = StepTimer(tmp_path), MemoryTimeline(tmp_path)
    bad = UnreadableClip("bb", "bb.mp4", "not a video")
    with pytest.raises(ValueError, match="not a video"):
        predict(tiny_model, [make_clip("a"), bad], timer, memory, on_error="raise")
    for name, expected in (("timings", NETWORK), ("memory", ALL)):
        records = json.loads((tmp_path / f"{name}.json").read_text())["records"]
        assert dict(Counter(record["stage"] for record in records)) == expected


def test_each_run_begins_anew_and_one_without_clips_that_work_is_empty(tiny_model, tmp_path):
    timer, memory = StepTimer(tmp_path), MemoryTimeline(tmp_path)
    predict(tiny_model, [make_clip("a")], timer, memory)
    predict(tiny_model, [make_clip("bb", prompts=())], timer, memory)
    assert count(timer.records, "bb") == {"invert": STEPS, "reconstruct": STEPS}
    assert timer.records[0].step == 2 and len(timer.records) == 2 * STEPS
    predict(tiny_model, [UnreadableClip("ccc", "ccc.mp4", "not a video")], timer, memory, logger=CSVLogger(tmp_path))
    assert timer.records == memory.records == [] and memory.peak_gib == {}
    assert json.loads((tmp_path / "timings.json").read_text())["stages"] == {}


@pytest.mark.parametrize("kind", [StepTimer, MemoryTimeline])
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_module_that_tells_nothing_is_run_all_the_same(kind, tmp_path):
    class Silent(LightningModule):
        done = 0

        def predict_step(self, batch, batch_idx):
            self.done += 1

    module = Silent()
    trainer = Trainer(**QUIET, callbacks=[kind(tmp_path)])
    with pytest.warns(UserWarning, match=f"{kind.__name__} measures nothing: Silent has no `progress_listeners`"):
        trainer.predict(module, DataLoader(torch.arange(2)), return_predictions=False)
    assert module.done == 2 and list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="warm_up: must be at least 0, got -1"):
        StepTimer(warm_up=-1)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        predict(tiny_model, [make_clip("a")], StepTimer(tmp_path / "file"))


def test_resident_memory_gnfe_with_what_is_held(monkeypatch):
    cpu = torch.device("cpu")
    before = read_memory_gib(cpu)["resident_gib"]
    held = torch.ones(2**26)  # a quarter of a GiB
    after = read_memory_gib(cpu)["resident_gib"]
    assert before > 0 and 0.2 < after - before < 0.3
    del held
    # Elsewhere than on Linux the system tells the peak alone.
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert read_memory_gib(cpu)["resident_gib"] >= 0.95 * after


@pytest.mark.gpu
def test_on_a_gpu(tiny_model, tmp_path):
    timer, memory = StepTimer(tmp_path), MemoryTimeline(tmp_path)
    predict(tiny_model, [make_clip("a"), make_clip("bb")], timer, memory, accelerator="gpu")
    for clip_id in ("a", "bb"):
        assert count(timer.records, clip_id) == NETWORK
        assert count(memory.records, clip_id) == ALL
    assert all(record.step_ms > 0 for record in timer.records)
    assert set(memory.records[0].memory) == {"allocated_gib", "reserved_gib", "peak_gib"}
    assert all(0 < r.memory["allocated_gib"] <= r.memory["peak_gib"] for r in memory.records)
    assert memory.peak_gib.keys() >= ALL.keys()
    assert json.loads((tmp_path / "timings.json").read_text())["device"] == torch.cuda.get_device_name()
