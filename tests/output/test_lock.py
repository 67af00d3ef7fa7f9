"""Locks between processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ddim_lightning.output.lock import RunLock, lock_file

HOLDS = """
import sys, time
from pathlib import Path
from ddim_lightning.output.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.begin()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a run into the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_dead(holder, tmp_path):
    second = RunLock(tmp_path)
    with pytest.raises(BlockingIOError, match=r"output_dir: .*another run"):
        second.begin()
    assert not second.is_held
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    second.begin()
    assert second.is_held
    second.release()


def test_a_run_holds_the_folder_as_long_as_one_of_its_processes(tmp_path):
    first, other, second = (RunLock(tmp_path) for _ in range(3))
    first.begin()
    other.join()
    first.release()
    with pytest.raises(BlockingIOError):
        second.begin()
    other.release()
    second.begin()
    second.release()


def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    lock = RunLock(tmp_path)
    lock.begin()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # lives on, as the worker of a data loader for a while after its parent was killed
        ours.close()
        theirs.send(b"here")
        theirs.recv(1)
        os._exit(0)
    try:
        assert ours.recv(4) == b"here"
        lock.release()
        second = RunLock(tmp_path)
        second.begin()
        second.release()
    finally:
        ours.send(b"x")
        os.waitpid(child, 0)


def test_who_waits_for_a_file_gets_the_one_that_took_its_place(tmp_path):
    path, order = tmp_path / "list", []

    def wait():
        with lock_file(path) as file:
            order.append(file.read())

    with lock_file(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(path)
    waiting.join(timeout=30)
    assert order == [b"new"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hosts", path)])
def test_what_is_no_file_is_refused(make, tmp_path):
    make(tmp_path / "list")
    with pytest.raises(OSError, match=r"output_dir: .*list must be a file"), lock_file(tmp_path / "list"):
        pytest.fail("it was opened")
