"""What the processes of a group tell each other, in real processes that fork from this one."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from torch import distributed
from torch.multiprocessing import start_processes

from ddim_lightning.runtime.clip_group import ClipGroup, GroupError, check_size


def run_in_processes(work, count, folder):
    """Call ``work(rank)`` in processes of a group, and return what each told, its error where it failed."""
    start_processes(partial(_run, work=work, count=count, folder=folder), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count) if (folder / f"{rank}.pt").exists()]


def _run(rank, work, count, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), count)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        told = work(rank)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    torch.save(told, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def work_in_pairs(rank):
    group, told = ClipGroup(2), {}
    assert group.is_first == (rank % 2 == 0)
    with group.together():
        told["gathered"] = group.gather(torch.full((1, 2), rank, dtype=torch.bfloat16)).tolist()
        told["first"] = group.take_first(torch.tensor([rank])).tolist()
        told["asked"] = group.ask_first(lambda: f"said by {rank}")
        # What process s sends to process r is of s + 1 rows and r + 1 columns.
        sent = [torch.full((group.rank + 1, r + 1), 10 * group.rank + r) for r in range(2)]
        shapes = [(s + 1, group.rank + 1) for s in range(2)]
        told["exchanged"] = [piece.tolist() for piece in group.exchange(sent, shapes)]
    for name, fails in (("both go on", None), ("one fails", 1), ("they differ", None)):
        try:
            with group.together():
                if group.rank == fails:
                    raise OSError("no more")
                group.check_same("clip", rank if name == "they differ" else 0)
            told[name] = "done"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def test_pairs_of_four_processes_agree_each_for_itself(tmp_path):
    found = run_in_processes(work_in_pairs, 4, tmp_path)
    for rank, told in enumerate(found):
        first = rank - rank % 2
        assert told["gathered"] == [[[first] * 2], [[first + 1] * 2]]
        assert (told["first"], told["asked"]) == ([first], f"said by {first}")
        mine = rank % 2
        assert told["exchanged"] == [[[10 * s + mine] * (mine + 1)] * (s + 1) for s in (0, 1)]
        assert told["both go on"] == "done"
        assert told["they differ"].startswith("GroupError: ranks_per_clip: ")
    assert found[1]["one fails"] == found[3]["one fails"] == "OSError: no more"
    assert all("OSError: no more" in found[rank]["one fails"] for rank in (0, 2))


def work_till_one_is_gone(rank):
    group = ClipGroup(2)
    with group.together():
        if rank == 1:
            os._exit(0)
        group.check_same("clip", 0)


def test_a_process_that_is_gone_ends_the_work_of_the_others(tmp_path):
    (told,) = run_in_processes(work_till_one_is_gone, 2, tmp_path)
    assert told.startswith("GroupError: ranks_per_clip: another process of the clip is gone")


def test_a_process_alone_waits_for_nobody():
    group, tensor = ClipGroup(), torch.zeros(2)
    with group.together():
        group.check_same("clip", 0)
        assert group.ask_first(lambda: 3) == 3
        assert group.take_first(tensor) is tensor
    with pytest.raises(OSError, match=r"^no more$"), group.together():
        raise OSError("no more")
    check_size(1)
    with pytest.raises(ValueError, match=r"^ranks_per_clip: must divide .*, 1, got 2$"):
        ClipGroup(2)
    assert issubclass(GroupError, RuntimeError)
