"""A training on two processes, with whole weights (DDP) or with shares of them (FSDP2), is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim_lightning import DDIMInversionModule
from tests.fit_on_processes import fit, make_module


def fit_two(model, folder, *names):
    """Fit cases, one after the other, on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.fit_on_processes", str(model), str(folder), json.dumps(names)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def read(folder, step=4):
    return torch.load(folder / f"step={step}.ckpt", weights_only=True)


def measure_distance(one, other):
    """The largest difference of two checkpoints' weights."""
    weights, others = one["state_dict"], other["state_dict"]
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def test_a_lora_on_two_processes_is_that_of_one_which_accumulates(tiny_model, tmp_path):
    """Weights, moments and all: gradients are clipped, and the shares compute their blocks twice."""
    fit(make_module(tiny_model), tmp_path / "one")
    wanted = read(tmp_path / "one")
    assert measure_distance(wanted, read(tmp_path / "one", step=2)) > 1e-4
    fit_two(tiny_model, tmp_path, "ddp-lora", "fsdp-lora")
    for name in ("ddp-lora", "fsdp-lora"):
        found = read(tmp_path / name)
        assert measure_distance(wanted, found) <= 1e-6
        for moments, others in zip(*(c["optimizer_states"][0]["state"].values() for c in (wanted, found)), strict=True):
            torch.testing.assert_close(moments["exp_avg"], others["exp_avg"], rtol=1e-4, atol=1e-8)
    loaded = DDIMInversionModule.load_from_checkpoint(tmp_path / "fsdp-lora" / "step=4.ckpt", weights_only=True)
    assert measure_distance(wanted, {"state_dict": loaded.state_dict()}) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("transformer",), ("transformer", "text_encoder")])
def test_whole_parts_on_two_processes_are_those_of_one(tiny_model, tmp_path, parts):
    fit(make_module(tiny_model, parts=parts), tmp_path / "one")
    names = [f"{strategy}-{parts[-1]}" for strategy in ("ddp", "fsdp")]
    fit_two(tiny_model, tmp_path, *names)
    for name in names:
        assert measure_distance(read(tmp_path / "one"), read(tmp_path / name)) <= 1e-6


@pytest.mark.slow
def test_checkpoints_go_on_whoever_wrote_them(tiny_model, tmp_path):
    """Of shares, in one file or in as many as there are processes, and on one process or two."""
    fit(make_module(tiny_model), tmp_path / "one")
    resumed = ("fsdp-resumed", "fsdp-resumed-shards", "ddp-resumed")
    fit_two(tiny_model, tmp_path, "fsdp-lora", "fsdp-shards", *resumed)
    fit(make_module(tiny_model), tmp_path / "one-resumed", ckpt_path=tmp_path / "fsdp-lora" / "step=2.ckpt")
    assert (tmp_path / "fsdp-shards" / "step=2.ckpt").is_dir()
    for name in (*resumed, "one-resumed"):
        assert measure_distance(read(tmp_path / "one"), read(tmp_path / name)) <= 1e-6
        assert not (tmp_path / name / "step=2.ckpt").exists() or name == "one-resumed"


@pytest.mark.slow
def test_shares_in_mixed_precision_keep_float32_weights_and_go_where_one_process_goes(tiny_model, tmp_path):
    fit(make_module(tiny_model), tmp_path / "one", precision="bf16-mixed")
    fit_two(tiny_model, tmp_path, "fsdp-mixed", "fsdp-muon")
    wanted, found = (read(tmp_path / name)["state_dict"] for name in ("one", "fsdp-mixed"))
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    moved = [name for name in wanted if "lora_B" in name]  # from zero
    distance = sum(float((wanted[name] - found[name]).square().sum()) for name in moved) ** 0.5
    assert 0 < distance < 0.2 * sum(float(wanted[name].square().sum()) for name in moved) ** 0.5
