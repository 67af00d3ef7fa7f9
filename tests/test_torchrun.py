"""Two processes that torchrun starts share a run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ddim_lightning.data.video import write_video
from ddim_lightning.writer import read_results

pytestmark = pytest.mark.slow

DIES = """
    import os
    import signal
    from pathlib import Path
    from lightning.pytorch.callbacks import Callback

    class Dies(Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if trainer.global_rank == 1 and batch_idx == 1 and not Path("died").exists():
                Path("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""

LAGS = """
    import time
    from lightning.pytorch.callbacks import Callback

    class Lags(Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if trainer.global_rank == 1 and batch_idx == 2:
                time.sleep(20)
"""


@pytest.fixture
def workplace(tmp_path):
    """A folder with six clips, of which the first is none, and callbacks: one kills the second process once."""
    (tmp_path / "clips").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        frames = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"clip-{i}.mp4", frames, Fraction(8))
    (tmp_path / "clips" / "clip-0.mp4").write_text("hello")
    (tmp_path / "dies.py").write_text(textwrap.dedent(DIES))
    (tmp_path / "lags.py").write_text(textwrap.dedent(LAGS))
    return tmp_path


def torchrun(workplace, *words, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}"]
    command += ["-m", "ddim_lightning", "predict", "--config", "tiny_cpu", "--model.schedule.num_inference_steps=2"]
    command += ["--data.height=32", "--data.width=32", "--data.num_frames=5", "--data.videos=clips"]
    command += ["--writer.output_dir=out", "--trainer.devices=2", "--trainer.strategy=ddp", *words]
    python_path = os.pathsep.join([str(Path(__file__).parents[1]), str(workplace)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    done = subprocess.run(
        command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr


def read_statuses(workplace):
    return {record["id"]: record["status"] for record in read_results(workplace / "out", earlier=True)}


WANTED = {"clip-0": "skipped", **{f"clip-{i}": "done" for i in range(1, 6)}}


def test_a_clip_that_was_skipped_costs_no_other_process_its_clips(workplace):
    status, told = torchrun(workplace)
    assert status == 0, told
    assert "skipped: clip-0" in told
    assert read_statuses(workplace) == WANTED


def test_a_process_that_dies_costs_its_clip_in_work_and_the_rest_is_done_by_the_next_run(workplace):
    status, _ = torchrun(workplace, "--trainer.callbacks=dies.Dies")
    assert status != 0
    left = read_statuses(workplace)
    assert left["clip-1"] == "done"
    assert left.keys() < WANTED.keys()
    times = {path: path.stat().st_mtime_ns for path in (workplace / "out").glob("*/result.json")}
    assert {path.parent.name for path in times} == {name for name, status in left.items() if status == "done"}
    status, told = torchrun(workplace)
    assert status == 0, told
    assert read_statuses(workplace) == WANTED
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not (workplace / "out" / ".ddim_lightning").exists()


def test_a_run_that_torchrun_starts_again_does_the_rest(workplace):
    status, told = torchrun(workplace, "--trainer.callbacks=dies.Dies", restarts=1)
    assert (workplace / "died").exists()
    if "Gloo connectFullMesh failed" in told:  # torch's: a restarted process may be told an old address
        status, told = torchrun(workplace)
    assert status == 0, told
    assert read_statuses(workplace) == WANTED


def test_a_share_may_take_longer_than_the_timeout_of_the_processes(workplace):
    strategy = "{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {timeout: '0:00:08'}}"
    status, told = torchrun(workplace, "--trainer.callbacks=lags.Lags", f"--trainer.strategy={strategy}")
    assert status == 0, told
    assert read_statuses(workplace) == WANTED
