"""What may stand where the folder of a clip is to be."""

from __future__ import annotations

import json
import os

import pytest

from ddim_lightning.output.clip_folder import write_clip
from ddim_lightning.output.place import check_replaceable, find_disk_fault, get_place, is_whole, read_record
from tests.clip_results import make_small_result


@pytest.fixture
def written(tmp_path):
    """The folder of a clip that a run wrote."""
    write_clip(make_small_result("a"), tmp_path, sheets=False)
    return tmp_path / "a"


def test_nothing_or_a_result_of_the_same_clip_may_stand_there(written, tmp_path):
    assert get_place(tmp_path, "a") == written
    assert get_place(tmp_path, "b") == tmp_path / "b"
    written.rename(tmp_path / "b")  # kept by its user under another name
    with pytest.raises(FileExistsError, match="output_dir"):
        get_place(tmp_path, "b")


@pytest.mark.parametrize("content", [None, "{}", "[" * 10_000, '{"schema": 3, "id": "a", "status": "done"}', "\0"])
def test_a_folder_without_a_record_of_ours_is_the_users(content, written, tmp_path):
    if content is None:
        (written / "result.json").unlink()
    else:
        (written / "result.json").write_text(content)
    with pytest.raises(FileExistsError, match="output_dir"):
        get_place(tmp_path, "a")
    with pytest.raises(FileExistsError, match="output_dir"):
        write_clip(make_small_result("a"), tmp_path, sheets=False)
    assert (written / "source.mp4").is_file()


def test_results_of_another_version_are_ours(written, tmp_path):
    record = json.loads((written / "result.json").read_text("utf-8"))
    (written / "result.json").write_text(json.dumps({**record, "schema": 2}))
    assert get_place(tmp_path, "a") == written
    check_replaceable(written)


def test_a_result_with_something_of_the_users_in_it_is_not_replaced(written, tmp_path):
    for name in ("notes", "edit-07.mp4"):
        (written / name).mkdir()
        with pytest.raises(FileExistsError, match=name):
            write_clip(make_small_result("a"), tmp_path, sheets=False)
        (written / name).rmdir()
    check_replaceable(written)
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_whole_where_no_file_is_missing_or_empty(written):
    record = read_record(written)
    assert is_whole(written, record)
    assert not is_whole(written, {**record, "files": {**record["files"], "edits": ["edit-00.mp4"]}})
    (written / "source.mp4").write_bytes(b"")
    assert not is_whole(written, record)


def test_faults_of_the_disk_are_told_from_others():
    full = OSError(28, "No space left on device")
    behind = ValueError("could not be written")
    behind.__cause__ = full
    assert find_disk_fault(full) == find_disk_fault(behind) == os.strerror(28)
    assert find_disk_fault(RuntimeError("I/O error: File too large (os error 27)")) == os.strerror(27)
    assert find_disk_fault(PermissionError(13, "Permission denied")) is None
    assert find_disk_fault(ValueError("odd height")) is None
