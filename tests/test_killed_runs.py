"""A run that is stopped at any moment, and started again, ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ddim_lightning.data.video import write_video

ROOT = Path(__file__).parents[1]
CLIPS = 12
STOPS = 20


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for i in range(CLIPS):
        frames = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
        write_video(folder / f"clip-{i:02d}.mp4", frames, Fraction(8))
    return folder


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """What a run that nobody stops writes, and how many seconds it works on its clips."""
    output = tmp_path_factory.mktemp("undisturbed")
    process = start(clips, output)
    wait_for_work(process)
    began = time.monotonic()
    assert finish(process) == 0
    return read_content(output), time.monotonic() - began


def start(clips, output):
    command = [sys.executable, "-m", "ddim_lightning", "predict", "--config", "tiny_cpu"]
    command += ["--model.schedule.num_inference_steps=2", "--model.outputs.save_trajectory=true"]
    command += ["--data.height=32", "--data.width=32", "--data.num_frames=5"]
    command += ["--data.videos", str(clips), "--writer.output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # What a shell starts in the background ignores SIGINT, and so does what that starts, unless somebody handles it.
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, handler)


def finish(process):
    process.communicate(timeout=300)
    return process.returncode


def wait_for_lock(process, output):
    while process.poll() is None and not (output / ".ddim_lightning" / "lock").exists():
        time.sleep(0.02)


def wait_for_work(process):
    """Wait for the first line of progress, which a clip makes that is not finished yet."""
    for line in process.stderr:
        if line.startswith(b"clip "):
            return


def read_content(output):
    """Everything in an output folder that is equal for equal runs: bytes by path, and records without times."""
    content = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.name == "result.json":
            content[name] = drop_times(json.loads(path.read_text("utf-8")))
        elif path.name == "results.jsonl":
            content[name] = [drop_times(record) for record in read_list(output)]
        elif path.is_file() and path.name != "index.html":  # which tells the times, too
            content[name] = path.read_bytes()
    return content


def read_list(output):
    path = output / "results.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def drop_times(record):
    return {key: value for key, value in record.items() if key not in {"seconds", "peak_gib"}}


def read_times(output):
    """When each clip was done, by its name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("clip-*/result.json")}


def check_stopped(output, before, wanted):
    """What must hold after any end: nothing half, nothing done twice, and a list that is true."""
    done = read_times(output)
    assert {name: done.get(name) for name in before} == before
    for name in done:
        prefix = f"{name}/"
        whole = {path.removeprefix(prefix): content for path, content in wanted.items() if path.startswith(prefix)}
        assert read_content(output / name) == whole
    listed = [record["id"] for record in read_list(output)]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(done)
    assert len(done) - len(listed) <= 1  # stopped between the clip and its line
    assert {path.name for path in output.iterdir()} <= {*done, "index.html", "results.jsonl", ".ddim_lightning"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_stopped_runs_go_on_to_the_bytes_of_an_undisturbed_one(name, clips, undisturbed, tmp_path):
    wanted, duration_s = undisturbed
    number = signal.Signals[name]
    output = tmp_path / "out"
    moments = random.Random(int(number))
    stops = 0
    while stops < STOPS:
        shutil.rmtree(output, ignore_errors=True)
        while True:
            before = read_times(output)
            process = start(clips, output)
            if stops < STOPS:
                wait_for_lock(process, output)
                if stops % 4:  # else while it loads
                    wait_for_work(process)
                time.sleep(moments.uniform(0, 0.4) * duration_s)
            if stops < STOPS and process.poll() is None:
                process.send_signal(number)
                stops += 1
            status = finish(process)
            check_stopped(output, before, wanted)
            print(f"{name} {stops}: status {status}, {len(before)} -> {len(read_times(output))} clips")
            if status == 0:
                assert read_content(output) == wanted
                break
