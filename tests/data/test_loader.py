"""Processes that read clips may die; a run may not."""

from __future__ import annotations

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ddim_lightning.data import dataset as reading
from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.data.loader import ClipLoader
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Clip, UnreadableClip

LIMITS = VideoLimits(num_frames=5, height=16, width=16, multiple=8, temporal=4)
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(autouse=True)
def _soon_noticed(monkeypatch):
    """PyTorch looks every five seconds whether a process that it waits for is still there; here more often."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def take_only(batch):
    return batch[0]


def load(carphone, num_workers=2, **faults):
    """Load clips, each of which a fault befalls when it is read in another process; the reasons by their ids."""
    main, read = os.getpid(), reading.read_clip

    def read_clip(path, **options):
        if os.getpid() != main and path.name in faults:
            faults[path.name]()
        return read(carphone, **options)

    requests = [ClipRequest(carphone.with_name(name), name, (f"prompt of {name}",)) for name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read_clip", read_clip)
        dataset = VideoDataset(requests, limits=LIMITS)
        clips = list(ClipLoader(dataset, batch_size=1, collate_fn=take_only, num_workers=num_workers))
    assert [clip.id for clip in clips] == list(NAMES)
    assert [clip.prompts for clip in clips] == [(f"prompt of {name}",) for name in NAMES]
    assert all(isinstance(clip, Clip | UnreadableClip) for clip in clips)
    return {clip.id: clip.reason for clip in clips if isinstance(clip, UnreadableClip)}


def die(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_faults_it_is_a_data_loader(carphone, num_workers):
    assert load(carphone, num_workers) == {}


@pytest.mark.filterwarnings("ignore:a process that reads clips")
def test_a_clip_that_kills_its_reader_is_skipped_and_the_others_are_read(carphone):
    former = signal.getsignal(signal.SIGCHLD)
    reasons = load(carphone, b=die(signal.SIGKILL))
    assert set(reasons) == {"b"}
    assert "SIGKILL" in reasons["b"] and "memory" in reasons["b"]
    assert signal.getsignal(signal.SIGCHLD) == former


def test_a_clip_whose_reader_was_killed_by_chance_is_not_lost(carphone, tmp_path):
    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.warns(UserWarning, match="a process that reads clips has ended"):
        assert load(carphone, c=die_once) == {}


@pytest.mark.filterwarnings("ignore:a process that reads clips")
def test_a_clip_that_is_never_read_to_its_end_is_skipped_within_a_stated_time(carphone, monkeypatch):
    monkeypatch.setattr(ClipLoader, "read_limit_s", 2)
    began = time.monotonic()
    assert load(carphone, a=lambda: time.sleep(1000)) == {"a": "reading took longer than 2 s"}
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("error", [MemoryError("of the clip"), RuntimeError("of the clip"), StopIteration()])
def test_whatever_a_reader_raises_is_the_reason_of_its_clip(error, carphone):
    def fail():
        raise error

    reasons = load(carphone, d=fail)
    assert set(reasons) == {"d"}
    assert reasons["d"].startswith(type(error).__name__)


def test_a_reader_in_the_main_process_is_no_different(carphone, monkeypatch):
    def read_clip(*_, **__):
        raise AttributeError("no codec")

    monkeypatch.setattr(reading, "read_clip", read_clip)
    dataset = VideoDataset([ClipRequest(carphone, "a")], limits=LIMITS)
    assert dataset[0] == UnreadableClip("a", str(carphone), "AttributeError: no codec")
    assert isinstance(ClipLoader(dataset), DataLoader)
