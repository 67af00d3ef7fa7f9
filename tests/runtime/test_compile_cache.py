"""Compiled graphs are code: they are taken only from where nobody else can write."""

from __future__ import annotations

import os

import pytest
import torch

from ddim_lightning.runtime.compile_cache import load_compiled, save_compiled

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system keeps who may write elsewhere")


@pytest.fixture
def loaded(monkeypatch):
    """What was handed to torch, which would run it."""
    contents = []
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", contents.append)
    return contents


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(name.encode())
        (folder / name).chmod(0o644)
    (folder / "notes.txt").write_text("not looked into")
    return folder


def test_what_its_owner_alone_can_write_is_taken(folder, loaded):
    load_compiled(folder)
    assert loaded == [b"a.bin", b"b.bin"]
    load_compiled(folder / "missing")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(folder, loaded, mode):
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=f"^compile_cache: .*cache.* {mode:o}$"):
        load_compiled(folder)
    assert loaded == []


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_to_is_refused(folder, loaded, mode):
    (folder / "b.bin").chmod(mode)
    with pytest.raises(PermissionError, match=rf"^compile_cache: .*b\.bin.* {mode:o}$"):
        load_compiled(folder)
    assert loaded == [b"a.bin"]


def test_what_belongs_to_somebody_else_is_refused(folder, loaded, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    if folder.stat().st_uid == 0:
        os.chown(folder, 12345, -1)
    with pytest.raises(PermissionError, match=r"^compile_cache: .*own.*cache"):
        load_compiled(folder)
    assert loaded == []


def test_what_is_saved_can_be_loaded_whatever_the_umask(tmp_path, loaded, monkeypatch):
    class Info:
        artifacts = {"inductor": ["key"]}  # noqa: RUF012

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"graph", Info))
    before = os.umask(0)
    try:
        save_compiled(tmp_path / "new" / "cache")
    finally:
        os.umask(before)
    load_compiled(tmp_path / "new" / "cache")
    assert loaded == [b"graph"]
